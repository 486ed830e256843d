"""Where a document went, and what a sample is made of: finished datasets asked, both ways.

    split_view   samples <-> positions in the stream <-> documents, exactly, for every shard format
    queries      what is asked: a sample, tokens, an id, a URL, a file and line, a hash, a passage of text
    search       documents by what their tables say; and where those that are in no split left
    passages     documents by a passage of their text, out of the shards alone
    runs         at which steps of a training run samples are seen
    trace        all of it, as one answer
    forget       documents taken out of the shards, with a certificate

Reads finished datasets through formats and storage; knows nothing of the pipeline's work.
"""
