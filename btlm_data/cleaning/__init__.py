"""What happens to the text of a document before deduplication: normalisation, filters, and the search for
evaluation texts.
"""
