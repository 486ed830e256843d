"""Deduplication: exact duplicates, near-duplicates by MinHash, an index of earlier runs (design, section 5).

settings.py  what every task of it needs        keys.py      keys of documents, partitioned by range
links.py     equal keys -> edges                verify.py    signatures compared before documents are linked
clusters.py  components -> fates, clusters      index.py     what earlier runs have, kept for later ones
steps.py     the steps in order                 curve.py     the match probability that bands and rows imply

Where texts decide: text_steps.py the steps in order, components.py and groups.py who is compared together,
members.py their places and texts, compare.py what goes for what. removals.py writes the evidence of every
removal.
"""
