"""Numba kernels: arrays in, arrays out; no I/O, no logging. Each has a plain twin in tests/reference."""
