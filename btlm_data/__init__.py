"""Raw text corpora to verified, training-ready HDF5 shards."""
