"""Readers of corpora: record formats and compressions, one file each, and the policy for every kind of bad
record.

    reader.py     read_batches: the way in
    base.py       what a format and a compression are, how a file is to be read
    formats.py    the list of formats; json_lines, json_document, text, delimited, parquet, arrow, warc
    compression/  gzip, zstd, bzip2, xz
    stream.py     decompressed bytes in UTF-8; lines.py cuts them into whole lines
    describe.py   which fields a file's records have

Reasons of rejects. Of a record: invalid_utf8, lone_surrogate, invalid_json, not_an_object, missing_text,
null_text, text_not_a_string, record_too_large, duplicate_column, malformed_row, malformed_record. Of a whole
record that is no text: answer_not_ok, not_text. Of a file or a part of it, counted once however many records it
held: truncated_file, corrupt_file, unreadable_file, window_too_large, git_lfs_pointer, wrong_encoding,
missing_package.
"""
