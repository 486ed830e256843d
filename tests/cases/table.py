"""The cases. `report` names public reports of the same kind."""

from __future__ import annotations

import bz2
import json
import lzma

import pyarrow as pa
import zstandard

from tests.cases.later import LATER
from tests.cases.makers import answer, bgzip, files, flipped, gz, links, page, parquet, warc
from tests.cases.model import Case, lines, text

QUOTED = '"' + text(2).replace("word2x0", 'say \\"word2x0\\"', 1) + '"'
SPLITS = [
    Case(
        "a word inside another is no split",
        "datasets#3788",
        files({"www_farodevigo_es.jsonl": lines([2]), "contest-2020.jsonl": lines([1])}),
        [1, 2],
    ),
    Case(
        "shards as the hub names them",
        "datasets docs: repository structure",
        files(
            {
                "data/train-00000-of-00002-0a1b.parquet": parquet({"text": [text(1)]}),
                "data/train-00001-of-00002-0a1b.parquet": parquet({"text": [text(2)]}),
                "data/validation-00000-of-00001-ff.parquet": parquet({"text": [text(3)]}),
                "data/test-00000-of-00001.parquet": parquet({"text": [text(4)]}),
            }
        ),
        [1, 2],
        {"validation": [3], "test": [4]},
    ),
    Case(
        "the outermost folder decides",
        "datasets#4985",
        files({"train/test-questions.jsonl": lines([1]), "test/training-like.jsonl": lines([2])}),
        [1],
        {"test": [2]},
    ),
    Case(
        "a folder val with odd names in it",
        "datasets#4895",
        files({"train/a.jsonl": lines([1]), "val/x_234.jsonl": lines([2])}),
        [1],
        {"validation": [2]},
    ),
    Case(
        "dev_matched and dev_mismatched",
        "GLUE MNLI",
        files(
            {"train.jsonl": lines([1]), "dev_matched.jsonl": lines([2]), "dev_mismatched.jsonl": lines([3])}
        ),
        [1],
        {"validation": [2, 3]},
    ),
    Case(
        "train-clean-100, dev-clean, test-other",
        "LibriSpeech",
        files(
            {
                "train-clean-100/a.jsonl": lines([1]),
                "dev-clean/a.jsonl": lines([2]),
                "test-other/a.jsonl": lines([3]),
            }
        ),
        [1],
        {"validation": [2], "test": [3]},
    ),
    Case(
        "upper case",
        "datasets#4895",
        files({"TRAIN.jsonl": lines([1]), "Test.JSONL": lines([2])}),
        [1],
        {"test": [2]},
    ),
    Case(
        "titles with spaces",
        "datasets#5021",
        files({"photo of test tubes.jsonl": lines([2]), "photo of a dog.jsonl": lines([1])}),
        [1, 2],
    ),
    Case(
        "Hive partitions",
        "datasets#5593",
        files(
            {
                "lang=en/split=train/p0.parquet": parquet({"text": [text(1)]}),
                "lang=en/split=test/p0.parquet": parquet({"text": [text(2)]}),
            }
        ),
        [1],
        {"test": [2]},
    ),
    Case(
        "the Pile",
        "the Pile's layout",
        files(
            {
                "train/00.jsonl.zst": zstandard.compress(lines([1])),
                "val.jsonl.zst": zstandard.compress(lines([2])),
                "test.jsonl.zst": zstandard.compress(lines([3])),
            }
        ),
        [1],
        {"validation": [2], "test": [3]},
    ),
    Case(
        "wiki.train.txt, wiki.valid.txt, wiki.test.txt",
        "WikiText",
        files({f"wiki.{part}.txt": text(n) for n, part in enumerate(("train", "valid", "test"))}),
        [0],
        {"validation": [1], "test": [2]},
    ),
    Case(
        "a rule that matches nothing",
        "marin#2381",
        files({"a.jsonl": lines([1]), "heldout.jsonl": lines([2])}),
        options=("--split-rule", "validation=held-out/*"),
        exit_code=2,
        says=("held-out/*", "no file"),
    ),
]

THREE = lines([1]), lines([2]), lines([3])
DAMAGE = [
    Case(
        "a checksum that does not match",
        "datatrove#278",
        files({"a.jsonl.gz": gz(THREE[0]) + flipped(gz(THREE[1]), -6) + gz(THREE[2])}),
        [1, 2, 3],
        rejects={"corrupt_file": 1},
        says=("checksum",),
    ),
    Case(
        "empty files among others",
        "ClickHouse#76473",
        files(
            {
                "a.jsonl": lines([1]),
                "b.jsonl.gz": b"",
                "c.jsonl": b"",
                "d.parquet": b"",
                "e.jsonl.zst": b"",
                "f.arrow": b"",
            }
        ),
        [1],
        left_out={"empty": 5},
    ),
    Case(
        "zeros at the end after a power cut",
        "json#NUL tails",
        files({"a.jsonl": lines([1, 2]) + b"\0" * 4096}),
        [1, 2],
        rejects={"corrupt_file": 1},
        says=("4,096", "zero"),
    ),
    Case(
        "zeros in the middle",
        "coco-caption#64",
        files({"a.jsonl": lines([1]) + b"\0" * 4096 + b"\n" + lines([2])}),
        [1, 2],
        rejects={"corrupt_file": 1},
        says=("zero",),
    ),
    Case("gzip that is called .jsonl", "aws-cli#6765", files({"a.jsonl": gz(lines([1, 2]))}), [1, 2]),
    Case("plain text that is called .gz", "fluent-bit#3676", files({"a.jsonl.gz": lines([1, 2])}), [1, 2]),
    Case(
        "zstd that is called .gz",
        "datatrove codec guesses",
        files({"a.jsonl.gz": zstandard.compress(lines([1, 2]))}),
        [1, 2],
    ),
    Case(
        "gzip that is called .zst", "dolma codec guesses", files({"a.jsonl.zst": gz(lines([1, 2]))}), [1, 2]
    ),
    Case(
        "gzip in gzip",
        "hotprices-au#17",
        files({"a.jsonl": lines([1]), "b.jsonl.gz": gz(gz(lines([2])))}),
        [1],
        rejects={"not_data": 1},
        says=("b.jsonl.gz: it is compressed twice",),
    ),
    Case("bgzip", "htslib bgzip", files({"a.jsonl.gz": bgzip(lines(range(300)))}), list(range(300))),
    Case(
        "skippable frames",
        "zstd seekable format",
        files(
            {
                "a.jsonl.zst": b"\x50\x2a\x4d\x18\x04\0\0\0\x01\x02\x03\x04"
                + zstandard.compress(lines([1]))
                + b"\x5e\x2a\x4d\x18\x04\0\0\0\x01\x02\x03\x04"
                + zstandard.compress(lines([2]))
            }
        ),
        [1, 2],
    ),
    Case(
        "a zstd dictionary that is not here",
        "ArchiveTeam warc.zst",
        files(
            {
                "a.jsonl": lines([1]),
                "b.jsonl.zst": zstandard.ZstdCompressor(
                    dict_data=zstandard.train_dictionary(4096, [text(n).encode() for n in range(200)])
                ).compress(lines([2])),
            }
        ),
        [1],
        rejects={"corrupt_file": 1},
        says=("dictionary",),
    ),
    Case(
        "xz of two streams with padding",
        "xz --format",
        files({"a.jsonl.xz": lzma.compress(lines([1])) + b"\0" * 8 + lzma.compress(lines([2]))}),
        [1, 2],
    ),
    Case(
        "the second bzip2 stream is cut",
        "Wikipedia multistream dumps",
        files({"a.jsonl.bz2": bz2.compress(lines([1])) + bz2.compress(lines([2]))[:-20]}),
        [1],
        rejects={"truncated_file": 1},
    ),
    Case(
        "parquet without its end",
        "arrow: magic bytes not found in footer",
        files({"a.parquet": parquet({"text": [text(1)]}), "b.parquet": parquet({"text": [text(2)]})[:-20]}),
        [1],
        rejects={"truncated_file": 1},
    ),
    Case(
        "an error page in place of data",
        "datasets: HTML instead of JSON",
        files(
            {
                "a.jsonl": lines([1]),
                "b.jsonl": "<!DOCTYPE html>\n<html>\n<body>\n<p>Sign in</p>\n</body>\n</html>\n",
            }
        ),
        [1],
        rejects={"not_data": 1},
        says=("HTML",),
    ),
    Case(
        "an object store's refusal in place of data",
        "S3 AccessDenied saved as the object",
        files(
            {
                "a.jsonl.gz": gz(lines([1])),
                "b.jsonl.gz": '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>',
                "c.parquet": '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>',
            }
        ),
        [1],
        rejects={"not_data": 2},
        says=("AccessDenied",),
    ),
    Case(
        "a download that aria2 has not finished",
        "aria2 control files",
        files({"a.jsonl": lines([1]), "b.jsonl": lines([2]) + b"\0" * 300, "b.jsonl.aria2": b"x"}),
        [1],
        left_out={"unfinished download": 2},
    ),
    Case(
        "parquet that is encrypted",
        "parquet modular encryption",
        files({"a.parquet": parquet({"text": [text(1)]}), "b.parquet": b"PARE" + b"x" * 100 + b"PARE"}),
        [1],
        rejects={"corrupt_file": 1},
        says=("encrypted",),
    ),
]

FORMATS = [
    Case(
        "two objects on a line",
        "lingua#42",
        files({"a.jsonl": lines([1]).rstrip() + lines([2]) + lines([3])}),
        [1, 2, 3],
    ),
    Case(
        "numbers that JSON does not have",
        "datasets#6460",
        files(
            {
                "a.jsonl": "".join(
                    f'{{"text": "{text(n)}", "score": {value}}}\n'
                    for n, value in enumerate(("NaN", "-Infinity", "1e999", "9" * 5000, "-0"))
                )
            }
        ),
        [0, 1, 2, 3, 4],
    ),
    Case(
        "half a surrogate pair",
        "tiktoken#82",
        files({"a.jsonl": lines([1]) + b'{"text": "' + text(2).encode() + b'\\ud83d"}\n' + lines([3])}),
        [1, 3],
        rejects={"lone_surrogate": 1},
    ),
    Case(
        "a raw tab in a string",
        "hcgf#15",
        files({"a.jsonl": lines([1]) + f'{{"text": "{text(2)}\tend"}}\n'.encode()}),
        [1, text(2) + "\tend"],
    ),
    Case(
        "records as Python prints them",
        "coco-caption#64",
        files({"a.jsonl": "".join(f"{{'text': '{text(n)}'}}\n" for n in range(20))}),
        exit_code=5,
        says=("quote",),
        never_says=("--text-field",),
    ),
    Case(
        "an object that holds the records in a list",
        "SQuAD; datasets field=",
        files({"a.json": json.dumps({"version": "2", "data": [{"text": text(n)} for n in range(20)]})}),
        exit_code=5,
        says=("data",),
    ),
    Case(
        "an object that holds columns",
        "pandas to_json",
        files({"a.json": json.dumps({"id": [1, 2], "text": [text(1), text(2)]})}),
        exit_code=5,
        says=("columns",),
        never_says=("text_join",),
    ),
    Case(
        "commas behind the objects",
        "jsonlines by hand",
        files({"a.jsonl": b",\n".join(lines([n]).strip() for n in range(5)) + b"\n"}),
        [0, 1, 2, 3, 4],
    ),
    Case(
        "line separators of Unicode in strings",
        "jsonlines#53",
        files(
            {"a.jsonl": json.dumps({"text": "a\u2028b\x85c\u2029d " + text(1)}, ensure_ascii=False) + "\n"}
        ),
        ["a\u2028b\x85c\u2029d " + text(1)],
    ),
    Case(
        "carriage returns end the lines",
        "csv of old Macs",
        files({"a.csv": f"id,text\r1,{text(1)}\r2,{text(2)}\r"}),
        [1, 2],
    ),
    Case(
        "carriage returns end the lines of JSON",
        "jsonlines of old Macs",
        files({"a.jsonl": lines([1, 2]).replace(b"\n", b"\r")}),
        [1, 2],
    ),
    Case("sep=; in the first line", "Excel", files({"a.csv": f"sep=;\r\nid;text\r\n1;{text(1)}\r\n"}), [1]),
    Case(
        "a table in UTF-16",
        "Excel's Unicode text",
        files({"a.tsv": f"id\ttext\r\n1\t{text(1)}\r\n".encode("utf-16")}),
        exit_code=3,
        says=("source.encoding",),
    ),
    Case(
        "quotes escaped by backslashes",
        "Spark's CSV",
        files({"a.csv": f"id,text\n1,{text(1)}\n2,{QUOTED}\n3,{text(3)}\n"}),
        [1, json.loads(QUOTED), 3],
    ),
    Case(
        "a quote that opens nothing in a TSV",
        "csvkit#382",
        files({"a.tsv": f'id\ttext\n1\t"{text(1)}\n2\t{text(2)}\n3\t{text(3)}\n'}),
        ['"' + text(1), 2, 3],
    ),
    Case(
        "a field of 200,000 characters",
        "CleverCSV#21",
        files({"a.csv": f'id,text\n1,"{"long " * 40_000}"\n2,{text(2)}\n'}),
        ["long " * 40_000, 2],
    ),
    Case(
        "the header once more in mid-file",
        "cat of CSV files",
        files({"a.csv": f"id,text\n1,{text(1)}\nid,text\n2,{text(2)}\n"}),
        [1, 2],
        rejects={"malformed_row": 1},
    ),
    Case(
        "a header in capitals",
        "Kaggle",
        files({"a.csv": "Id,Text\n" + "".join(f"{n},{text(n)}\n" for n in range(20))}),
        exit_code=5,
        says=("--text-field Text",),
    ),
    Case(
        "a null column in one of the files",
        "cudf#5062, NeMo Curator#557",
        files(
            {
                "a.parquet": parquet({"text": [text(1), text(2), text(3)]}),
                "b.parquet": parquet({"text": pa.array([None, None], pa.null())}),
            }
        ),
        [1, 2, 3],
        rejects={"null_text": 2},
    ),
    Case(
        "other endings of the same formats",
        "Dask, pandas",
        files(
            {
                "a.parq": parquet({"text": [text(1)]}),
                "b.pq": parquet({"text": [text(2)]}),
                "c.parquet.pq": parquet({"text": [text(3)]}),
                "d.snappy.parquet": parquet({"text": [text(4)]}),
                "e.JSONL.GZ": gz(lines([5])),
                "f.text": text(6),
            }
        ),
        [1, 2, 3, 4, 5, 6],
    ),
    Case(
        "archives and documents",
        "SynthTabNet#15",
        files(
            {
                "a.jsonl": lines([1]),
                "b.zip": b"PK\x03\x04",
                "c.tar.gz": b"x",
                "d.jsonl.lz4": b"x",
                "e.pdf": b"%PDF",
                "f.7z": b"7z",
            }
        ),
        [1],
        left_out={"unknown ending": 2, "archive": 3},
        says=("unpack",),
    ),
    Case(
        "Latin-1",
        "chardet questions",
        files({"a.txt": text(1), "b.txt": ("é " + text(2)).encode("latin-1")}),
        [1],
        rejects={"invalid_utf8": 1},
        says=("source.encoding",),
    ),
    Case(
        "WARC packed as a whole",
        "warctools#15, warcio#140",
        files({"a.warc.gz": gz(warc([answer(page(n), "Content-Type: text/html") for n in (1, 2)]))}),
        [1, 2],
    ),
    Case(
        "answers that are packed and chunked",
        "warctools#14",
        files(
            {
                "a.warc": warc(
                    [
                        answer(gz(page(1)), "Content-Type: text/html", "Content-Encoding: gzip"),
                        answer(
                            b"%x\r\n%b\r\n0\r\n\r\n" % (len(page(2)), page(2)),
                            "Content-Type: text/html",
                            "Transfer-Encoding: chunked",
                        ),
                    ]
                )
            }
        ),
        [1, 2],
    ),
    Case(
        "answers whose headers say what is no longer so",
        "warctools#14",
        files(
            {
                "a.warc": warc(
                    [
                        answer(page(1), "Content-Type: text/html", "Content-Encoding: gzip"),
                        answer(page(2), "Content-Type: text/html", "Transfer-Encoding: chunked"),
                    ]
                )
            }
        ),
        [1, 2],
    ),
    Case(
        "ARC files",
        "warcio#140",
        files({"a.jsonl": lines([1]), "b.arc.gz": gz(b"filedesc://x")}),
        [1],
        left_out={".arc": 1},
    ),
    Case(
        "an object in place of the text",
        "datasets#7322",
        files({"a.jsonl": "".join(json.dumps({"text": {"content": text(n)}}) + "\n" for n in range(20))}),
        exit_code=5,
        says=("--text-field text.content",),
    ),
    Case(
        "conversations",
        "LlamaFactory#8805",
        files(
            {
                "a.jsonl": "".join(
                    json.dumps({"messages": [{"role": "user", "content": text(n)}]}) + "\n" for n in range(20)
                )
            }
        ),
        exit_code=5,
        says=("messages",),
        never_says=("--text-field messages",),
    ),
    Case(
        "meta that changes its type",
        "FlashRAG#132, datasets#6106",
        files(
            {
                "a.jsonl": b"".join(
                    lines([n], meta=meta)
                    for n, meta in enumerate(({"a": 1}, [1, "x", [2]], "str", None, 1.5, {"a": ["x", {}]}))
                )
            }
        ),
        [0, 1, 2, 3, 4, 5],
    ),
    Case(
        "blank lines",
        "graphrag#2424",
        files({"a.jsonl": b"\n \r\n" + lines([1]) + b"\t\n\n" + lines([2]) + b" "}),
        [1, 2],
    ),
    Case(
        "an empty text first",
        "Megatron-LM#62",
        files({"a.jsonl": b'{"text": ""}\n' + lines([1])}),
        ["", 1],
    ),
]

PLACES = [
    Case(
        "what macOS leaves",
        "SynthTabNet#15, openneuro#2520",
        files(
            {
                "a.jsonl": lines([1]),
                "._a.jsonl": b"\0\5\x16\7",
                "__MACOSX/._a.jsonl": b"\0\5\x16\7",
                ".DS_Store": b"x",
            }
        ),
        [1],
        left_out={"hidden": 2, "archiver": 1},
    ),
    Case(
        "a hidden folder that is named",
        "datasets#6230",
        files({".corpus/.v2/a.jsonl": lines([1])}),
        [1],
        source=".corpus/.v2",
    ),
    Case(
        "a hidden file that is named",
        "datasets#6230",
        files({".a.jsonl": lines([1])}),
        [1],
        source=".a.jsonl",
    ),
    Case(
        "names with signs that mean something elsewhere",
        "datasets#5099, huggingface_hub#1161",
        files(
            {
                "#1.jsonl": lines([1]),
                "%41 b.jsonl": lines([2]),
                "-n.jsonl": lines([3]),
                "[2024]/a?b*.jsonl": lines([4]),
                "a\nb.jsonl": lines([5]),
                "cafe\u0301.jsonl": lines([6]),
            }
        ),
        [1, 2, 3, 4, 5, 6],
    ),
    Case(
        "a snapshot of the hub's cache",
        "huggingface_hub: cache layout",
        links({"blobs/0a1b": lines([1])}, {"snapshots/c0ffee/a.jsonl": "../../blobs/0a1b"}),
        [1],
        source="snapshots/c0ffee",
    ),
    Case(
        "a link beside the file",
        "du and rsync of links",
        links({"2024-01.jsonl": lines([1])}, {"latest.jsonl": "2024-01.jsonl"}),
        [1, 1],
        says=("the same file",),
    ),
    Case(
        "a tokenizer beside the data",
        "model repositories with data",
        files(
            {
                "a.jsonl": lines([1]),
                "tokenizer.json": "{}",
                "tokenizer_config.json": "{}",
                "vocab.json": "{}",
                "merges.txt": "#version\na b",
                "added_tokens.json": "{}",
                "special_tokens_map.json": "{}",
                "preprocessor_config.json": "{}",
                "config.json": "{}",
            }
        ),
        [1],
        left_out={"description": 8},
    ),
    Case(
        "lists beside the data",
        "RedPajama's and Common Crawl's lists",
        files(
            {
                "a.jsonl": lines([1]),
                "urls.txt": "https://x/a",
                "SHA256SUMS.txt": "00 a",
                "md5sum.txt": "00 a",
                "file_list.txt": "a.jsonl",
                "manifest.csv": "a,b",
                "dataset-metadata.json": "{}",
            }
        ),
        [1],
        left_out={"description": 6},
    ),
    Case(
        "attributes beside documents",
        "dolma's layout",
        files(
            {
                "documents/a.jsonl.gz": gz(lines([1])),
                "attributes/quality/a.jsonl.gz": gz(b'{"id": "1", "attributes": {"q": []}}\n'),
            }
        ),
        [1],
        left_out={"attributes": 1},
    ),
    Case(
        "a Delta table",
        "delta-rs: files of older versions",
        files(
            {
                "part-0.snappy.parquet": parquet({"text": [text(1)]}),
                "_delta_log/00000000000000000000.json": "{}",
            }
        ),
        [1],
        left_out={"bookkeeping": 1},
        says=("Delta",),
    ),
    Case(
        "what editors leave",
        "Emacs, Vim, rsync",
        files(
            {
                "a.jsonl": lines([1]),
                "a.jsonl~": lines([2]),
                "b.jsonl.bak": lines([3]),
                "#a.jsonl#": lines([4]),
                ".a.jsonl.swp": b"x",
                ".a.jsonl.Xy12Zz": b"x",
            }
        ),
        [1],
        left_out={"unknown ending": 3, "hidden": 2},
    ),
    Case(
        "names that differ in case",
        "macOS and Windows",
        files({"A.jsonl": lines([1]), "a.jsonl": lines([2])}),
        [1, 2],
    ),
    Case(
        "a folder of papers only",
        "empty git-lfs clones",
        files({"README.md": "# x", ".gitattributes": "x"}),
        exit_code=3,
        says=("No corpus file",),
    ),
    Case(
        "no folder of this name, but a repository",
        "datasets: load_dataset('org/name')",
        files({}),
        source="\0allenai/c4",
        exit_code=3,
        says=("hf://datasets/allenai/c4",),
    ),
    Case(
        "the page of a data set",
        "datasets: pasted URLs",
        files({}),
        source="\0https://huggingface.co/datasets/allenai/c4",
        exit_code=2,
        says=("hf://datasets/allenai/c4",),
    ),
    Case(
        "the page of a file",
        "datasets: pasted URLs",
        files({}),
        source="\0https://huggingface.co/datasets/allenai/c4/blob/main/en/a.json.gz",
        exit_code=2,
        says=("hf://datasets/allenai/c4/en/a.json.gz",),
    ),
    Case(
        "hf:// without its kind",
        "HfFileSystem paths",
        files({}),
        source="\0hf://allenai/c4",
        exit_code=2,
        says=("hf://datasets/allenai/c4",),
    ),
    Case(
        "one slash",
        "s3 paths",
        files({}),
        source="\0s3:/bucket/a.jsonl",
        exit_code=3,
        says=("s3://bucket/a.jsonl",),
    ),
]

SETTINGS = [
    Case(
        "files that the shell has filled in",
        "unquoted globs",
        files({"a.jsonl": lines([1])}),
        options=("b.jsonl",),
        exit_code=2,
        says=("quote",),
    ),
    Case(
        "every document is short",
        "tweets",
        files({"a.jsonl": "".join(json.dumps({"text": f"a tweet {n}"}) + "\n" for n in range(20))}),
        options=("--set", "clean.min_chars=200"),
        exit_code=3,
        says=("clean.min_chars",),
    ),
    Case(
        "a number with an exponent for a count",
        "pyyaml#173",
        files({"a.jsonl": lines([1, 2])}),
        [1, 2],
        options=("--limit", "1e6"),
    ),
    Case(
        "sizes as people write them",
        "docker, ulimit",
        files({"a.jsonl": lines([1])}),
        [1],
        options=("--memory", "4 GiB", "--cache-size", "50G", "--set", "source.max_record_bytes=512m"),
    ),
    Case(
        "a length with a comma",
        "numbers in papers",
        files({"a.jsonl": lines([1])}),
        options=("--seq-len", "2048,8192"),
        exit_code=2,
        says=("--seq-len 2048 --seq-len 8192",),
    ),
    Case(
        "a sentencepiece model as tokenizer",
        "tokenizers: .model files",
        files({"a.jsonl": lines([1]), "tok/tokenizer.model": b"\x0a\x0e\x0a\x05<unk>"}),
        options=("--tokenizer", "\0tok/tokenizer.model"),
        exit_code=2,
        says=("tokenizer.json",),
    ),
    Case(
        "vocab.json and merges.txt as tokenizer",
        "GPT-2's files",
        files({"a.jsonl": lines([1]), "tok/vocab.json": "{}", "tok/merges.txt": "#version"}),
        options=("--tokenizer", "\0tok"),
        exit_code=2,
        says=("tokenizer.json",),
    ),
]


CASES = [*SPLITS, *DAMAGE, *FORMATS, *PLACES, *SETTINGS, *LATER]
