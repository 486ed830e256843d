"""One module per stage: plan() and work()."""
