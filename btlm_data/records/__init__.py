"""Readers of corpora: record formats (one file each), compressions, and the policy for every kind of bad record."""
