"""How work is spread over processes and machines; never imports a stage."""
