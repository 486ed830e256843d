"""More cases, found later."""

from __future__ import annotations

import json
import zlib

import pyarrow as pa

from tests.cases.makers import answer, files, gz, page, parquet, warc, wet
from tests.cases.model import Case, lines, text


def _gzip_with_all_fields(data: bytes) -> bytes:
    """A gzip member that has every optional field of RFC 1952: extra, name, comment, header CRC."""
    body = gz(data)[10:]
    header = b"\x1f\x8b\x08\x1e" + bytes(4) + b"\x00\x03" + b"\x04\x00abcd" + b"a.jsonl\0" + b"words\0"
    return header + (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little") + body


WET_BYTES = f"Content-Length: {len(text(2))}".encode()
LATER = [
    Case(
        "objects between brackets, without commas",
        "stream-json#86",
        files({"a.json": b"[\n" + lines([1, 2, 3]) + b"]\n"}),
        [1, 2, 3],
    ),
    Case(
        "a comma behind the last object of an array",
        "trace-viewer#119, perfetto#1822",
        files({"a.json": b"[\n" + b",\n".join(lines([n]).strip() for n in (1, 2)) + b",\n]\n"}),
        [1, 2],
    ),
    Case(
        "comments between records",
        "jsonlines#65",
        files({"a.jsonl": b"# made by us\n" + lines(range(30))}),
        list(range(30)),
        rejects={"invalid_json": 1},
    ),
    Case(
        "a first record that describes the others",
        "browsertrix-crawler#327",
        files(
            {"a.jsonl": b'{"format": "json-pages-1.0", "id": "pages", "hasText": true}\n' + lines(range(30))}
        ),
        list(range(30)),
        rejects={"missing_text": 1},
    ),
    Case(
        "objects over several lines in a .jsonl",
        "jq without --compact-output",
        files({"a.jsonl": "".join(json.dumps({"id": n, "text": text(n)}, indent=2) + "\n" for n in (1, 2))}),
        [1, 2],
    ),
    Case(
        "records that begin with a record separator",
        "RFC 7464, jq --seq",
        files({"a.jsonl": b"".join(b"\x1e" + lines([n]) for n in (1, 2, 3))}),
        [1, 2, 3],
    ),
    Case(
        "another case of the field's name",
        "datasets#6460",
        files({"a.jsonl": "".join(json.dumps({"Text": text(n)}) + "\n" for n in range(20))}),
        exit_code=5,
        says=("--text-field Text",),
    ),
    Case(
        "numbers and null in place of the text",
        "pandas NaN in to_json",
        files({"a.jsonl": lines(range(30)) + b'{"text": 12}\n{"text": null}\n{"text": NaN}\n'}),
        list(range(30)),
        rejects={"text_not_a_string": 2, "null_text": 1},
    ),
    Case(
        "meta of ten thousand levels",
        "simdjson, orjson: recursion",
        files({"a.jsonl": lines([1]) + b'{"meta": ' + b"[" * 10_000 + b"]" * 10_000 + b', "text": "x"}\n'}),
        [1],
        rejects={"invalid_json": 1},
    ),
    Case(
        "one record in another encoding",
        "chardet questions",
        files({"a.jsonl": lines(range(100)) + b'{"text": "caf\xe9"}\n'}),
        list(range(100)),
        rejects={"invalid_utf8": 1},
        never_says=("source.encoding",),
    ),
    Case(
        "a list of strings, joined as asked",
        "Project Gutenberg by paragraphs",
        files({"a.jsonl": json.dumps({"text": [text(1), text(2)]}) + "\n"}),
        [f"{text(1)}\n{text(2)}"],
        options=("--set", 'source.text_join="\\n"'),
    ),
    Case(
        "the header once more behind the last row",
        "votaciones-ar-datasets#9",
        files({"a.csv": f"id,text\n1,{text(1)}\n2,{text(2)}id,text\n3,{text(3)}\n"}),
        [1, 3],
        rejects={"malformed_row": 1},
    ),
    Case(
        "columns without names, and two of one name beside the text",
        "misoproject/dataset#136",
        files({"a.csv": f",,x,x,text\n0,1,2,3,{text(1)}\n"}),
        [1],
    ),
    Case(
        "carriage returns in a quoted field",
        "datasets#622",
        files({"a.csv": f'id,text\r\n1,"one\rtwo\r\n{text(1)}"\r\n2,{text(2)}\r\n'.encode()}),
        [f"one\rtwo\r\n{text(1)}", 2],
    ),
    Case("semicolons", "Excel in Europe", files({"a.csv": f"id;text\n1;{text(1)}\n2;{text(2)}\n"}), [1, 2]),
    Case(
        "no header",
        "skordinal#149",
        files({"a.csv": "".join(f'{n},"{text(n)}"\n' for n in range(20))}),
        exit_code=5,
        says=("header",),
    ),
    Case(
        "a column of pictures beside the text",
        "data-prep-kit#816",
        files({"a.parquet": parquet({"images": [[b"\0" * 100] * 3] * 2, "text": [text(1), text(2)]})}),
        [1, 2],
    ),
    Case(
        "a column of lists of structs, null in all",
        "pandas#58867, nested-pandas#507",
        files({"a.parquet": parquet({"text": [text(1), text(2)], "meta": [[{"b": None}], None]})}),
        [1, 2],
    ),
    Case(
        "no rows",
        "polars#8260",
        files(
            {
                "a.parquet": parquet({"text": [text(1)]}),
                "b.parquet": parquet({"text": pa.array([], pa.string())}),
            }
        ),
        [1],
    ),
    Case(
        "bytes of a fixed length",
        "parquet FIXED_LEN_BYTE_ARRAY",
        files({"a.parquet": parquet({"text": pa.array([text(1).encode()], pa.binary(len(text(1))))})}),
        [1],
    ),
    Case(
        "every optional field of gzip",
        "RFC 1952",
        files({"a.jsonl.gz": _gzip_with_all_fields(lines([1]))}),
        [1],
    ),
    Case(
        "zeros behind the gzip data",
        "gzip: trailing zeros of tapes",
        files({"a.jsonl.gz": gz(lines([1])) + b"\0" * 512, "b.jsonl": lines([2])}),
        [1, 2],
    ),
    Case(
        "an answer without a content type",
        "warc2text#65",
        files({"a.warc": warc([answer(page(1)), answer(page(2), "Content-Type: text/html")])}),
        [1, 2],
    ),
    Case(
        "answers that are no pages are named, and no fault of the settings",
        "Common Crawl's crawldiagnostics",
        files(
            {
                "a.warc": warc(
                    [answer(page(1), "Content-Type: text/html")]
                    + [answer(page(1)).replace(b"200 OK", b"404 Not Found")] * 12
                    + [answer(b"\x89PNG", "Content-Type: image/png")]
                )
            }
        ),
        [1],
        options=("--strict",),
        rejects={"answer_not_ok": 12, "not_text": 1},
        says=("answer not ok 12, not text 1", "13 records without text left out, listed in"),
        never_says=("could not be read",),
    ),
    Case(
        "papers in other spellings",
        "GitHub's names of licences",
        files(
            {
                "data/a.jsonl": lines([1]),
                "readme.txt": "x",
                "LICENSE.txt": "x",
                "data/ReadMe.TXT": "x",
                "COPYING": "x",
                "NOTICE.txt": "x",
                "CITATION.cff": "x",
            }
        ),
        [1],
        left_out={"description": 6},
    ),
    Case(
        "what downloads leave beside the data",
        "huggingface_hub --local-dir, Windows downloads",
        files(
            {
                "a.jsonl": lines([1]),
                ".cache/huggingface/download/a.jsonl.metadata": "x",
                "a.jsonl:Zone.Identifier": "[ZoneTransfer]",
                "desktop.ini": "x",
            }
        ),
        [1],
        left_out={"hidden": 1, "unknown ending": 2},
    ),
    Case(
        "what datasets keeps of map and filter",
        "datasets: cache-*.arrow",
        files({"a.jsonl": lines([1]), "cache-0a1b2c.arrow": b"ARROW1"}),
        [1],
        left_out={"": 1},
    ),
    Case(
        "a split's word within a name, and `train` in its place beside it",
        "WMT's and OPUS's names",
        files(
            {
                "wmt-dev-en.jsonl": lines([2]),
                "wmt-train-en.jsonl": lines([1]),
                "web-dev-blog.jsonl": lines([3]),
            }
        ),
        [3, 1],
        {"validation": [2]},
        says=("1 file of train has the name of another split within: web-dev-blog.jsonl",),
    ),
    Case(
        "a pattern with braces",
        "WebDataset's and the shell's names",
        files(
            {
                "p-08.jsonl": lines([8]),
                "p-09.jsonl": lines([9]),
                "p-10.jsonl": lines([10]),
                "q.json": lines([1]),
            }
        ),
        [9, 10],
        source="p-{09..11}.json{,l}",
    ),
    Case(
        "spaces after the commas",
        "csv by hand",
        files({"a.csv": f'id, text\n1, {text(1)}\n2, "{text(2)}, too"\n'}),
        [1, text(2) + ", too"],
    ),
    Case(
        "comments above the header",
        "csvkit --skip-lines",
        files({"a.csv": f"# made by hand\n# twice\nid,text\n1,{text(1)}\n"}),
        [1],
    ),
    Case(
        "a row in place of the header",
        "pandas header=None",
        files({"a.csv": f"{text(1)}\n{text(2)}\n"}),
        exit_code=5,
        says=("The first line of a.csv seems to be a row",),
        never_says=("--text-field",),
    ),
    Case(
        "a field whose name the shell would not leave whole",
        "MongoDB's extended JSON",
        files({"a.jsonl": "".join(json.dumps({"$the text": text(n), "n": n}) + "\n" for n in range(20))}),
        exit_code=5,
        says=("--text-field '$the text'",),
    ),
    Case(
        "texts that are empty, and the text elsewhere",
        "empty columns of joined tables",
        files({"a.jsonl": "".join(json.dumps({"text": "", "content": text(n)}) + "\n" for n in range(20))}),
        exit_code=3,
        options=("--set", "clean.min_chars=200"),
        says=("The texts are empty.", "--text-field content"),
    ),
    Case(
        "a pointer of git-annex",
        "DataLad: clone without get",
        files({"a.jsonl": lines([1]), "b.jsonl.gz": "/annex/objects/SHA256E-s123--abcdef.jsonl.gz\n"}),
        [1],
        rejects={"not_data": 1},
        says=("git annex get",),
    ),
    Case(
        "records of wrong lengths, and garbage between",
        "warcreate#122, warcio#99",
        files(
            {
                "a.wet": wet(1) + b"x\r\n\r\n" + wet(2).replace(WET_BYTES, b"Content-Length: 100") + wet(3),
                "b.wet": wet(4)[:-200],
            }
        ),
        [1, 2, 3, text(4)[:-196]],
        rejects={"corrupt_file": 2, "truncated_file": 1},
    ),
]
