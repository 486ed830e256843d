"""Documents added to a finished dataset, as a generation of its own (formats/generations.py).

add        a new source prepared as the next generation, deduplicated against all earlier ones
index      what deduplication compares with: made from the shards of a finished dataset
sketching  its first step: texts and sketches of documents out of the shards
"""
