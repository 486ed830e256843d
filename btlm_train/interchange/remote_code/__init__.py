"""Files that travel with an exported model; transformers loads them with `trust_remote_code=True`."""
