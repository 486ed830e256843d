"""Look at a prepared dataset, never write to it."""
