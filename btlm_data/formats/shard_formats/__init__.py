"""Shards: what training reads, one HDF5 file with one dataset `data` each."""
