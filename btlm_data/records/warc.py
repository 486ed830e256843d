"""WARC and WET (ISO 28500): a document a web page, by `fastwarc` and `resiliparse` (the extra `warc`).

A response of status 200 whose content is HTML or plain text gives its main text; a conversion record (WET)
gives its text as it is. Other answers (`answer_not_ok`), other content and the other kinds of records that hold
what a server sent (`not_text`) are rejects; requests and metadata are passed over. The offset of a record is that
of its first byte in the decompressed file; `lines` count documents and rejects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from btlm_data.errors import install_command
from btlm_data.records.base import MAX_BATCH_RECORDS, ReadRequest, RecordFormat
from btlm_data.records.batch import UNNAMED_SOURCE, RecordBatch, Reject, too_large
from btlm_data.records.fields import lookup, source_name
from btlm_data.records.json_lines import add_reject
from btlm_data.records.stream import open_stream
from btlm_data.records.warc_records import WarcRecord, warc_records

_KINDS = frozenset({"response", "conversion"})
_KINDS_OF_CONTENT = frozenset({"resource", "revisit", "continuation"})
_TEXT_TYPES = ("text/html", "application/xhtml+xml", "text/plain", "")
_MAX_HEADER_BYTES = 2**16


class WebRecord:
    """The headers of a WARC record, and its text."""

    __slots__ = ("_headers", "_text")

    def __init__(self, headers: Mapping[str, str], text: str) -> None:
        self._headers, self._text = headers, text

    def fields(self) -> dict[str, str]:
        """The headers by their names, and "text"."""
        return {**self._headers, "text": self._text}


def _read(request: ReadRequest) -> Iterator[RecordBatch]:
    try:
        import fastwarc.warc  # noqa: F401
        import resiliparse.extract.html2text  # noqa: F401
    except ImportError as error:
        batch = request.new_batch()
        detail = f"WARC files are read by fastwarc and resiliparse ({error}); {install_command('warc')}"
        add_reject(batch, Reject(0, 0, "missing_package", detail, request.path.stat().st_size))
        batch.final = True
        yield batch
        return
    batch, held, number = request.new_batch(), 0, 0
    to_skip, max_bytes = request.stretch.lines_done, request.options.max_record_bytes
    for record in _records(request):
        number += 1
        if number <= to_skip:
            continue
        line = number - 1
        if isinstance(record, Reject):
            add_reject(batch, replace(record, line=line))
        elif record.num_bytes > max_bytes:
            add_reject(batch, too_large(line, record.offset, record.num_bytes, max_bytes))
        else:
            held += _add(batch, request, record, line)
        if held >= request.batch_bytes or batch.num_records >= MAX_BATCH_RECORDS:
            batch.num_lines = batch.end = number
            yield batch
            batch, held = request.new_batch(), 0
    if batch.num_records:
        batch.num_lines = batch.end = number
        batch.final = True
        yield batch


def _records(request: ReadRequest) -> Iterator[WarcRecord | Reject]:
    """Each response and conversion, and a reject for each place that cannot be read and each record of other content.

    A file without any response or conversion is one such place.
    """
    others, is_empty = 0, True
    with open_stream(request) as stream:
        for record in warc_records(stream, _KINDS, request.options.max_record_bytes):
            if isinstance(record, WarcRecord) and record.kind not in _KINDS:
                others += 1
                if record.kind in _KINDS_OF_CONTENT:
                    detail = f"a WARC record of the type {record.kind}"
                    yield Reject(0, record.offset, "not_text", detail, record.num_bytes)
                continue
            is_empty = False
            yield record
    if is_empty and others:
        detail = f"none of its {others:,} WARC records is a response or a conversion"
        yield Reject(0, 0, "not_data", detail, request.path.stat().st_size)


def _raise_unless_about_data(error: BaseException) -> None:
    """Let pass what the libraries raise for bad content; where they panic, that is no Exception."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    is_panic = type(error).__module__ == "pyo3_runtime"
    if not is_panic and not isinstance(error, OSError | ValueError | RuntimeError | LookupError):
        raise error


def _add(batch: RecordBatch, request: ReadRequest, record: WarcRecord, line: int) -> int:
    """Add one record's document, or the reason why it has none; returns the bytes looked at."""
    try:
        text_or_fault, size = _text(record, request.options.max_record_bytes)
    except BaseException as error:
        _raise_unless_about_data(error)
        detail = f"the page cannot be decoded: {error}"[:300]
        add_reject(batch, Reject(line, record.offset, "malformed_record", detail, record.num_bytes))
        return record.num_bytes
    if not isinstance(text_or_fault, str):
        add_reject(batch, Reject(line, record.offset, *text_or_fault, record.num_bytes))
        return size
    text = text_or_fault
    whole = WebRecord(record.headers, text)
    name = request.file.source
    if name is None:
        name = source_name(lookup(record.headers, request.fields.source), UNNAMED_SOURCE)
    batch.texts.append(text)
    batch.sources.append(name)
    batch.lines.append(line)
    batch.offsets.append(record.offset)
    if batch.records is not None:
        batch.records.append(whole)
    return size


def _text(record: WarcRecord, max_bytes: int) -> tuple[str | tuple[str, str], int]:
    """The record's text, or the reason and detail why it is none, and the bytes looked at."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    if record.kind == "conversion":
        return record.content.decode("utf-8", "replace"), record.num_bytes
    answer, data = _answer(record.content, max_bytes)
    status = answer.http_headers.status_code if answer.http_headers is not None else None
    if status != 200:
        detail = f"an answer of status {status}" if status is not None else "no answer of a web server"
        return ("answer_not_ok", detail), len(data)
    kind = (answer.http_content_type or "").split(";")[0].strip().lower()
    if kind not in _TEXT_TYPES:
        return ("not_text", f"content of the type {kind[:100]!r}"), len(data)
    page = bytes_to_str(data, answer.http_charset or detect_encoding(data) or "utf-8")
    if kind == "text/plain":
        return page.encode("utf-8", "replace").decode("utf-8"), len(data)
    return extract_plain_text(page, main_content=True), len(data)


def _answer(content: bytes, max_bytes: int) -> tuple[Any, bytes]:
    """The headers and the body of an HTTP answer.

    Some archives hold bodies that the crawler has unpacked already under headers that still say `gzip` or
    `chunked`: what cannot be unpacked is taken as it is.
    """
    from fastwarc.warc import WarcRecord as FastRecord

    for decoding in ("all", "none"):
        record: Any = FastRecord()
        record.set_bytes_content(content)
        record.is_http = True
        try:
            record.parse_http(auto_decode=decoding, max_header_len=_MAX_HEADER_BYTES)
            return record, bytes(record.reader.read(max_bytes))
        except BaseException as error:
            _raise_unless_about_data(error)
            if decoding == "none":
                raise
    raise AssertionError  # one of the two has returned or raised


WARC = RecordFormat("warc", (".warc", ".wet", ".warc.wet"), _read)
