"""Pages for people: report.html, one self-contained file that shows what a dataset is and what is wrong with
it.
"""
