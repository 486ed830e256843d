"""Where a corpus comes from: a sorted list of files from any kind of place, and their bytes on this machine.

    listing.py     from `--source` to a sorted list of files with splits
    corpora.py     the corpora that have a name
    schemes.py     URL scheme -> module; one module per scheme: local.py, hub.py, web.py, bucket.py
    splits.py      which split a file belongs to
    selection.py   which files are the corpus, and what is left out
    fetch.py       remote files on local disk
    pool.py        the bounded folder that holds them
    prefetch.py    downloads ahead of the readers
    http.py        bytes over HTTP

To add a URL scheme, write one module with the calls of `base.Scheme` and name it in `schemes.SCHEMES`.
"""
