"""Files of every kind that are damaged or made to do harm: an error in words, or a counted reject, within bounds."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import socket
import zlib
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tests.attacks.bench import EVIL, Bench, probe, rename_in_manifest

GROUP = "hostile files"
MB = 2**20

GOOD = b'{"text": "' + b"a good document of some length, which stays; " * 10 + b'"}\n'

LINES: dict[str, bytes] = {
    "a key twice": b'{"text": "first first first", "text": "second second second"}\n',
    "NaN": b'{"text": "some text here", "x": NaN, "y": Infinity}\n',
    "huge integers": b'{"text": "some text here", "x": ' + b"9" * 100_000 + b"}\n",
    "huge exponents": b'{"text": "some text here", "x": 1e999999999}\n',
    "deep": b'{"text": "some text here", "x": ' + b"[" * 200_000 + b"\n",
    "deep and whole": b'{"text": "some text here", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "lone surrogates": b'{"text": "a \\ud800 b \\udc00 c", "meta": {"redpajama_set_name": "\\ud800"}}\n',
    "NUL bytes": b'{"text": "a\\u0000b\\u0000c"}\n\0\0\0\n',
    "not UTF-8": b'{"text": "\xff\xfe\x80"}\n',
    "a BOM in the middle": b'\xef\xbb\xbf{"text": "x"}\n',
    "numbers as text": b'{"text": 5}\n{"text": null}\n{"text": ["a"]}\n{"text": {"a": 1}}\n',
    "no object": b'5\n"x"\n[]\nnull\n{}\n',
    "carriage returns": b'{"text": "x"}\r{"text": "y"}\r\n',
    "an endless key": b'{"' + b"k" * (2 * MB) + b'": 1, "text": "x"}\n',
    "hidden source": json.dumps({"text": "some words " * 9, "meta": {"redpajama_set_name": EVIL}}).encode() + b"\n",
    "a long source": json.dumps({"text": "some words " * 9, "meta": {"redpajama_set_name": "x" * 100_000}}).encode() + b"\n",
    "blank lines": b"\n" * 100_000,
    "half a record": b'{"text": "half',
}  # fmt: skip


@probe(GROUP, *LINES)
def json_lines(bench: Bench, name: str) -> None:
    bench.write("src/a.jsonl", GOOD * 3 + LINES[name] + GOOD.replace(b"good", b"fine") * 2)
    bench.prepare("src", "out", "--dedupe", "none", "--set", "source.max_rejected=1.0")
    table = pq.read_table(bench.root / "out/train/documents.parquet")
    assert table.num_rows >= 4  # a half line takes the next one with it
    bench.run("verify", bench.root / "out", "--json", code=0)
    bench.run("inspect", bench.root / "out", "--full", code=0)


def _bomb_gz() -> bytes:
    packer = zlib.compressobj(9, 8, 31)
    return b"".join([packer.compress(b" " * MB) for _ in range(300)] + [packer.flush()])


def _bomb_zst() -> bytes:
    packer = zstandard.ZstdCompressor(level=3).compressobj()
    return b"".join([packer.compress(b"x" * MB) for _ in range(300)] + [packer.flush()])


def _window_zst() -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(GOOD * 10)


def _parquet(table: pa.Table, **options: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def _dictionary_parquet() -> bytes:
    array = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["x" * 100_000]))
    return _parquet(pa.table({"text": array}))


FILES: dict[str, Callable[[], bytes]] = {
    "bomb.jsonl.gz": _bomb_gz,
    "bomb.jsonl.zst": _bomb_zst,
    "window.jsonl.zst": _window_zst,
    "cut.jsonl.gz": lambda: gzip.compress(GOOD * 100)[:-30],
    "behind.jsonl.gz": lambda: gzip.compress(GOOD) + b"rubbish behind it" * 100,
    "empty.jsonl.gz": lambda: b"",
    "dictionary.parquet": _dictionary_parquet,
    "nulls.parquet": lambda: _parquet(pa.table({"text": pa.nulls(1_000_000, pa.string())})),
    "no-text.parquet": lambda: _parquet(pa.table({"other": ["x"]})),
    "numbers.parquet": lambda: _parquet(pa.table({"text": [1, 2, 3]})),
    "lists.parquet": lambda: _parquet(pa.table({"text": [["a"], ["b"]]})),
    "bytes.parquet": lambda: _parquet(pa.table({"text": [b"\xff\xfe", b"ok"]})),
    "cut.parquet": lambda: _parquet(pa.table({"text": ["x" * 100] * 100}))[:-20],
    "hidden-names.parquet": lambda: _parquet(pa.table({"text": ["x " * 50], EVIL: [1]})),
    "magic.parquet": lambda: b"PAR1" + b"\0" * 100 + b"\xff\xff\xff\x7fPAR1",
    "is-text.parquet": lambda: GOOD * 10,
    "is-parquet.jsonl": lambda: _parquet(pa.table({"text": ["x"]})),
    "deep.json": lambda: b'[{"text": "x", "y": ' + b"[" * MB,
    "quotes.csv": lambda: b'text\n"' + b"a" * (3 * MB),
    "is-a-page.jsonl": lambda: b"<!DOCTYPE html><html><body>Sign in</body></html>\n" * 50,
    "pointer.jsonl": lambda: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    ),
}


@probe(GROUP, *FILES)
def a_source_file(bench: Bench, name: str) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bench.write("src/good.jsonl", GOOD * 3)
    bench.write(f"src/{name}", FILES[name]())
    options = ("--dedupe", "none", "--set", "source.max_rejected=1.0")
    ended = bench.prepare("src", "out", *options, code=None)
    assert ended.code in (0, 3, 5), ended.words
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 900_000  # kB
    if ended.code == 0:
        bench.run("verify", bench.root / "out", code=0)
    bench.prepare("src", "strict", *options, "--strict", code=None)


def _pipe(bench: Bench) -> None:
    os.mkfifo(bench.root / "src/b.jsonl")


def _socket(bench: Bench) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(bench.root / "src")
        listening.bind("b.jsonl")
        os.chdir(bench.root)


def _zeros(bench: Bench) -> None:
    (bench.root / "src/b.jsonl").symlink_to("/dev/zero")


def _link_out(bench: Bench) -> None:
    (bench.root / "src/b.jsonl").symlink_to("/etc/hostname")


def _loop(bench: Bench) -> None:
    (bench.root / "src/sub").symlink_to(bench.root / "src")


def _no_text(bench: Bench) -> None:
    with open(os.path.join(os.fsencode(bench.root), b"src/\xff\xfe.jsonl"), "wb") as file:
        file.write(GOOD)


def _line_feed(bench: Bench) -> None:
    bench.write("src/a\nb.jsonl", GOOD)


def _hidden(bench: Bench) -> None:
    bench.write(f"src/{EVIL}.jsonl", GOOD)


def _sparse(bench: Bench) -> None:
    bench.write("src/b.jsonl", GOOD)
    os.truncate(bench.root / "src/b.jsonl", 1 << 28)


def _deep_folders(bench: Bench) -> None:
    bench.write("src/" + "d/" * 200 + "b.jsonl", GOOD)


def _many(bench: Bench) -> None:
    for number in range(1500):
        bench.write(f"src/many/{number}.jsonl", b"")


@probe(
    GROUP,
    _pipe,
    _socket,
    _zeros,
    _link_out,
    _loop,
    _no_text,
    _line_feed,
    _hidden,
    _sparse,
    _deep_folders,
    _many,
)
def an_odd_entry_in_the_source(bench: Bench, make: Callable[[Bench], None]) -> None:
    bench.write("src/a.jsonl", GOOD * 3)
    make(bench)
    options = ("--dedupe", "none", "--set", "source.max_rejected=1.0")
    ended = bench.prepare("src", "out", *options, code=None)
    assert ended.code in (0, 3, 5), ended.words
    if ended.code == 0:
        bench.run("inspect", bench.root / "out", "--full", code=0)
        bench.run("verify", bench.root / "out", "--json", code=0)


RECIPES: dict[str, str] = {
    "an object": "!!python/object/apply:os.system ['touch PWNED']",
    "an object as a value": "seed: !!python/object/apply:os.system ['touch PWNED']",
    "laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "itself": "a: &a [*a]",
    "deep": "[" * 20_000,
    "deep maps": "{a: " * 3000,
    "a key twice": "seed: 1\nseed: 2",
    "two documents": "seed: 1\n---\nseed: 2",
    "a tag": "seed: !!set {a, b}",
    "workers": "run: {workers: 1000000000}",
    "memory": "run: {memory: 1}",
    "not a number": "mix: {S0: .nan}",
    "permutations": "dedupe: {num_perm: 1000000000000}",
    "backtracking": "clean: {filters: [{name: regex, drop: '(a+)+$'}]}",
    "a huge number": "seed: " + "9" * 5000,
    "NUL": "seed: \0",
    "hidden": f"{EVIL.encode('unicode_escape').decode()}: 1\nsedd: 2",
    "a deep field": "source: {name: a.jsonl, text_field: '" + "a." * 3000 + "a'}",
    "a list of keys": "? [a, b]\n: 1",
    "a page": "<html></html>",
    "nothing": "",
    "a date": "seed: 2020-01-01",
    "a float": "seed: 1.5",
    "binary": "seed: !!binary aGk=",
}  # fmt: skip


@probe(GROUP, *RECIPES)
def a_recipe(bench: Bench, name: str) -> None:
    bench.write("src/a.jsonl", GOOD * 5)
    bench.write("r.yaml", RECIPES[name])
    ended = bench.run(
        "run", bench.root / "r.yaml", "--source", bench.root / "src", "--out", bench.root / "x", "--plan"
    )
    assert ended.code in (0, 2), ended.words
    assert not (bench.root / "PWNED").exists()


@probe(GROUP, *(name for name in RECIPES if name not in ("workers", "backtracking")))
def a_parameter_file(bench: Bench, name: str) -> None:
    bench.write("p.yaml", RECIPES[name])
    ended = bench.run("run", "--params", bench.root / "p.yaml", "--mode", "train", "--model-dir", bench.root / "m",
                      program="btlm_train")  # fmt: skip
    assert ended.code in (2, 3), ended.words
    assert not (bench.root / "PWNED").exists()


TOKENIZERS: dict[str, object] = {
    "no model": {},
    "a list": [],
    "deep": None,
    "a backtracking pattern": {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    },
    "a growing normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "xxxxxxxxxx"},
}


@probe(GROUP, *TOKENIZERS, slow=True)
def a_tokenizer(bench: Bench, name: str) -> None:
    from tests.tokenizer.makers import OTHERS

    bench.write("src/a.jsonl", b'{"text": "' + b"a" * 3000 + b'!"}\n' + GOOD * 4)
    tree = json.loads(OTHERS["word_level"]().to_str())
    value = TOKENIZERS[name]
    if isinstance(value, dict) and value:
        tree["pre_tokenizer" if value["type"] == "Split" else "normalizer"] = value
    else:
        tree = value
    bench.write("tokenizer.json", "[" * 100_000 if name == "deep" else json.dumps(tree))
    done = bench.process("prepare", "--source", "src", "--out", "out", "--seq-len", "16", "--tokenizer", "tokenizer.json",
                         "--set", "tokenizer.eos=</s>", "--workers", "1", seconds=90)  # fmt: skip
    assert done.returncode in (0, 2), done.stderr[-800:]
    assert b"Traceback" not in done.stderr


@probe(GROUP, slow=True)
def a_small_limit_of_memory(bench: Bench) -> None:
    bench.write("src/a.jsonl", GOOD * 50)
    for kilobytes in (200_000, 600_000, 1_200_000, 2_500_000):
        limited = ["bash", "-c", f'ulimit -v {kilobytes}; exec "$@"', "-"]
        for arguments in (["prepare", "--source", "src", "--out", f"o{kilobytes}", "--seq-len", "16", "--workers", "2"],
                          ["inspect", "src"], ["--help"]):  # fmt: skip
            done = bench.process(*arguments, prefix=limited)
            assert done.returncode in (0, 1, 2, 3, 4, 5, 70), (
                kilobytes,
                arguments,
                done.returncode,
                done.stderr[-300:],
            )
            assert b"Traceback" not in done.stderr, (kilobytes, arguments, done.stderr[-600:])


@probe(
    GROUP, "[" * 4096, "", "null", "\0" * 100, '{"a":' * 800, '{"expires": "x", "pid": "y"}', EVIL, slow=True
)
def a_record_of_a_run(bench: Bench, text: str) -> None:
    """Leases, marks and the mark of the work folder, as a disk or a stranger left them."""
    bench.write("src/a.jsonl", GOOD * 3)
    for name in ("out/preparing.lease", "work/run.lease", "work/work-folder.json", "out/preparing.json", "out/dataset.json",
                 "text/text.json", "work/blocks.json"):  # fmt: skip
        for folder in ("out", "work", "text"):
            shutil.rmtree(bench.root / folder, ignore_errors=True)
        bench.write(name, text)
        ended = bench.prepare("src", "out", "--dedupe", "none", "--work-dir", bench.root / "work", "--emit-text",
                              bench.root / "text", code=None)  # fmt: skip
        assert ended.code in (0, 4), (name, ended.words)


@probe(GROUP, "[" * 50_000, "{}", "null", '{"file": 5, "offset": [], "line": "x"}', EVIL, '{"reason": 1}')
def lines_of_a_received_dataset(bench: Bench, line: str) -> None:
    root = bench.dataset()
    for name in ("rejects.jsonl", "examples.jsonl"):
        path = root / name
        path.write_text(f"{line}\n" * 3, encoding="utf-8")
        rename_in_manifest(root, path)
    bench.run("inspect", root, "--full")
    assert bench.failing_checks(root)
    bench.run("trace", root, "--file", "train/a.jsonl", "--line", "100")
    bench.run("trace", root, "--id", "train/a.jsonl#5", "--json")


def _crashing(how: str) -> str:
    return f"import ctypes, os, signal\n\ndef deadly(document):\n    {how}\n    return True\n"


@probe(GROUP, "ctypes.string_at(0)", "os.abort()", "os.kill(os.getpid(), signal.SIGBUS)", slow=True)
def a_crash_with_one_worker_has_words(bench: Bench, how: str) -> None:
    """A function of the user stands for a library that does not survive a file."""
    bench.write("src/a.jsonl", GOOD * 5)
    bench.write("my_filters.py", _crashing(how))
    bench.write("r.yaml", "seq_len: 16\nclean: {filters: [{name: deadly, function: 'my_filters:deadly'}]}\n")
    done = bench.process("run", "r.yaml", "--source", "src", "--out", "out", "--workers", "1")
    words = done.stderr.decode().splitlines()[-1]
    assert done.returncode < 0
    assert words.startswith("error: The program crashed while it read a.jsonl ("), done.stderr[-800:]
    assert "--skip-failed" in words
    assert b"Traceback" not in done.stderr
    assert len(list((bench.root / "tmp").glob("btlm-error-*.txt"))) == 1
