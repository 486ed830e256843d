"""Damaged files for the commands that read more than a corpus, controls from every field, and flips in what runs leave."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.attacks.bench import EVIL, Bench, edit, probe, rename_in_manifest
from tests.attacks.hostile_files import GOOD, GROUP
from tests.attacks.terminals_and_bytes import BYTES, NAME, _expected
from tests.attacks.terminals_and_bytes import GROUP as TERMINALS
from tests.attacks.trainer_and_exports import _train

FLIPS = "flipped bits"
TEXTS = ("", "\0" * 5000, "[" * 90_000, '{"a":' * 5000, "null", EVIL, "\udcff" * 3, "9" * 10_000)


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


# Hostile files -----------------------------------------------------------------------------------------------------


@probe(GROUP, *TEXTS)
def a_list_of_questions(bench: Bench, text: str) -> None:
    root = bench.dataset()
    _write(bench.root / "list", f"{text}\n" * 3)
    for command in ("trace", "forget"):
        ended = bench.run(command, root, "--list", bench.root / "list")
        assert ended.code in (0, 1, 2, 3), ended.words
    assert not bench.failing_checks(root)


@probe(GROUP, *TEXTS)
def a_key_or_a_list_of_signers(bench: Bench, text: str) -> None:
    root = bench.dataset()
    for name in ("key", "signers", "data/dataset.json.sig"):
        _write(bench.root / name, text)
        (bench.root / name).chmod(0o600)
    assert bench.run("sign", root, "--key", bench.root / "key").code != 0
    assert bench.run("verify", root, "--signers", bench.root / "signers").code != 0
    assert bench.run("verify", root, "--signers", bench.root / "signers", "--json").code != 0


@probe(GROUP, *TEXTS, "a: &a [*a]", "x: {url: 'file:///etc/passwd'}", "? [a]\n: b")
def a_file_of_sources(bench: Bench, text: str) -> None:
    bench.write("a.jsonl", GOOD)
    _write(bench.root / "sources.yaml", text)
    for source in ("a.jsonl", "x"):
        ended = bench.run("prepare", "--source", source, "--sources-file", bench.root / "sources.yaml", "--out", bench.root / "o",
                          "--seq-len", "16", "--plan")  # fmt: skip
        assert ended.code in (0, 2, 3), ended.words
        assert "root:" not in ended.words


@probe(GROUP, *TEXTS, '{"text": 5}', '{"question": ["x"]}', slow=True)
def an_evaluation_set(bench: Bench, text: str) -> None:
    bench.corpus()
    for name in ("e.jsonl", "e.json", "e.txt", "e.jsonl.gz", "e.parquet"):
        _write(bench.root / name, text)
        ended = bench.prepare(
            "a.jsonl", f"out-{name}", "--set", f"holdout.decontaminate=[{bench.root / name}]", code=None
        )
        assert ended.code in (0, 1, 2, 3), (name, ended.words)


@probe(
    GROUP,
    "config.json",
    "params.yaml",
    "model.safetensors",
    "pytorch_model.bin",
    "model.mdl",
    "model.safetensors.index.json",
)
def a_folder_to_import(bench: Bench, name: str) -> None:
    header = struct.pack("<Q", 1 << 60)
    for number, text in enumerate((*TEXTS, header.decode("latin-1"), "PK\3\4" + "x" * 500)):
        folder = bench.root / f"folder{number}"
        folder.mkdir()
        if name != "config.json":
            (folder / "config.json").write_text(
                '{"model_type": "btlm", "architectures": ["BTLMLMHeadModel"]}'
            )
        _write(folder / name, text)
        ended = bench.run("import", folder, "--model-dir", bench.root / f"run{number}", program="btlm_train")
        assert ended.code in (1, 2, 3), ended.words
        assert not list((bench.root / f"run{number}").glob("checkpoints/step_*"))


@probe(GROUP, "run.json", "params.json", "data.json", "metrics.jsonl", "checkpoints/step_00000002/state.json",
       "checkpoints/step_00000002/model.safetensors", slow=True)  # fmt: skip
def a_folder_of_a_run_that_was_sent(bench: Bench, name: str) -> None:
    _train(bench, "run", 2)
    whole = bench.root / "run" / name
    before = whole.read_bytes() if whole.exists() else b""
    for text in (*TEXTS, '{"format_version": 99}', "[[[]]]"):
        _write(whole, text)
        for words in (["generate", "--model-dir", bench.root / "run", "--prompt", "x", "--max-tokens", "1"],
                      ["batch", bench.root / "run", "--step", "1"],
                      ["export", "--model-dir", bench.root / "run", "--out", bench.root / "exported"]):  # fmt: skip
            bench.run(*words, program="btlm_train")
        _train(bench, "run", 3, code=None)
        shutil.rmtree(bench.root / "exported", ignore_errors=True)
    whole.write_bytes(before)


@probe(GROUP, "dataset.json", "provenance.json", "export.json", slow=True)
def a_record_with_odd_numbers(bench: Bench, name: str) -> None:
    root = bench.dataset()
    bench.run("export", root, "--to", "npy", "--out", bench.root / "out", code=0)
    path = bench.root / "out/export.json" if name == "export.json" else root / name
    whole = path.read_text()
    for old, new in ((": 1", ": 1e400"), (": 1", ": -1"), (": 2", ": " + "9" * 400), (': "', ': "\\ud800'), (": [", ": [null, "),
                     (": {", ': {"": {}, '), (": 0", ": 0.5"), (": true", ": 3")):  # fmt: skip
        for at in range(1, 6):
            parts = whole.split(old)
            if len(parts) > at:
                path.write_text(old.join(parts[:at]) + new + old.join(parts[at:]))
                for words in (["inspect", root], ["verify", root], ["diff", root, root],
                              ["export", root, "--to", "npy", "--out", bench.root / "out", "--overwrite"]):  # fmt: skip
                    bench.run(*words)


@probe(GROUP, "a folder", "a pipe", "a device", "a loop", "no permission")
def an_odd_file_for_every_option(bench: Bench, what: str) -> None:
    bench.corpus()
    root, odd = bench.dataset(), bench.root / "odd"
    if what == "a folder":
        odd.mkdir()
    elif what == "a pipe":
        os.mkfifo(odd)
    elif what == "a device":
        odd.symlink_to("/dev/zero")
    elif what == "a loop":
        odd.symlink_to(odd)
    else:
        odd.write_text("x")
        odd.chmod(0)
    prepare = ["prepare", "--source", "a.jsonl", "--out", "o", "--seq-len", "16", "--workers", "1", "--plan"]
    for words in (["trace", root, "--list", odd], ["forget", root, "--list", odd], ["sign", root, "--key", odd],
                  ["verify", root, "--signers", odd], [*prepare, "--config", odd], [*prepare, "--sources-file", odd],
                  [*prepare, "--tokenizer", odd], ["run", odd], ["status", odd], ["worker", odd, "--idle", "0"], ["inspect", odd],
                  ["verify", odd], ["diff", odd, root], ["export", odd, "--to", "npy", "--out", "x"], ["trace", odd, "--sample", "0"],
                  [*prepare, "--set", f"holdout.decontaminate=[{odd}]"], ["verify", root, "--source", odd],
                  ["trace", root, "--sample", "0", "--run", odd]):  # fmt: skip
        bench.run(*words)


# Terminals ---------------------------------------------------------------------------------------------------------


@probe(TERMINALS, "id", "fields.url", "source", "file")
def controls_in_a_table_of_documents(bench: Bench, column: str) -> None:
    root = bench.dataset()
    path = root / "train/documents.parquet"
    table = pq.read_table(path)
    values = pa.array([f"{EVIL}{i}" for i in range(table.num_rows)])
    number = table.schema.get_field_index(column)
    table = table.append_column(column, values) if number < 0 else table.set_column(number, column, values)
    pq.write_table(table, path)
    rename_in_manifest(root, path)
    for words in (["trace", root, "--sample", "0"], ["trace", root, "--id", f"{EVIL}1"], ["trace", root, "--url", f"{EVIL}1", "--json"],
                  ["inspect", root, "--sample", "0"], ["forget", root, "--id", f"{EVIL}1", "--json"], ["verify", root],
                  ["inspect", root, "--full"]):  # fmt: skip
        bench.run(*words)


@probe(TERMINALS, "parquet", "csv", "json keys", "arrow", slow=True)
def controls_in_names_of_columns(bench: Bench, form: str) -> None:
    table = pa.table({EVIL: ["x " * 80], f"{EVIL}2": [1]})
    (bench.root / "src").mkdir()
    if form == "parquet":
        pq.write_table(table, bench.root / "src/a.parquet")
    elif form == "csv":
        bench.write("src/a.csv", f"{EVIL},b\nx,y\n")
    elif form == "arrow":
        with pa.ipc.new_file(bench.root / "src/a.arrow", table.schema) as writer:
            writer.write_table(table)
    else:
        bench.write("src/a.jsonl", json.dumps({EVIL: "x " * 80, "\x1b]0;t\x07": {EVIL: 1}}) + "\n")
    bench.prepare("src", "out", code=None)
    bench.prepare("src", "out", "--plan", code=None)
    bench.run("inspect", bench.root / "src")


def in_the_configuration(tree: Any) -> None:
    tree["configuration"]["source"]["text_field"] = EVIL
    tree["configuration"]["source"]["name"] = EVIL


def in_left_out(tree: Any) -> None:
    tree["left_out"] = [{"reason": EVIL, "count": 1, "names": [EVIL]}]


def in_the_tokenizer(tree: Any) -> None:
    tree["tokenizer"]["name"] = EVIL


def in_the_ledger(tree: Any) -> None:
    for row in tree["ledger"]:
        row["source"] = EVIL
        row["dropped"] = dict.fromkeys(
            [EVIL] * len(row["dropped"]), next(iter(row["dropped"].values()), None)
        )


def in_inputs(tree: Any) -> None:
    tree["inputs"][0]["name"] = EVIL
    tree["inputs"][0]["source"] = EVIL


def in_other_inputs(tree: Any) -> None:
    tree["other_inputs"][EVIL] = EVIL


@probe(
    TERMINALS, in_the_configuration, in_left_out, in_the_tokenizer, in_the_ledger, in_inputs, in_other_inputs
)
def controls_in_a_manifest(bench: Bench, change: Callable[[Any], None]) -> None:
    root = bench.dataset()
    shutil.copytree(root, bench.root / "whole")
    edit(root / "dataset.json", change)
    for words in (["inspect", root], ["inspect", root, "--full"], ["inspect", root, "--json"], ["verify", root], ["verify", root, "--json"],
                  ["diff", bench.root / "whole", root], ["run", root / "dataset.json", "--plan", "--out", bench.root / "o"],
                  ["trace", root, "--sample", "0"]):  # fmt: skip
        bench.run(*words)


@probe(TERMINALS, "status", "failure", "lease", "certificate", "provenance", "metrics", "recipe")
def controls_in_a_record(bench: Bench, what: str) -> None:
    bench.corpus()
    bench.prepare("a.jsonl", "out", "--stop-after", "pack")
    work = bench.root / "out/.work"
    if what == "status":
        tree = json.loads((work / "status.json").read_bytes())
        (work / "status.json").write_text(_evil(tree))
        bench.run("status", work)
        bench.run("status", work, "--json")
    elif what == "failure":
        record = {"digest": "x", "step": "read", "task": EVIL, "title": EVIL, "reasons": [EVIL], "log": EVIL}
        bench.write("out/.work/failures/read/x.json", json.dumps(record))
        bench.run("status", work)
    elif what == "lease":
        bench.write(
            "out/.work/run.lease",
            json.dumps({"holder": EVIL, "machine": EVIL, "pid": 1, "expires": 9e9, "host": EVIL}),
        )
        bench.prepare("a.jsonl", "out", code=None)
    elif what == "certificate":
        root = bench.dataset()
        bench.run("forget", root, "--id", "train/a.jsonl#0", "--reason", EVIL, code=0)
        bench.run("inspect", root, "--full")
        bench.run("verify", root)
        bench.run("forget", root, "--id", "train/a.jsonl#0", "--json")
    elif what == "provenance":
        root = bench.dataset()
        (root / "provenance.json").write_text(_evil(json.loads((root / "provenance.json").read_bytes())))
        for words in (
            ["inspect", root, "--full"],
            ["verify", root],
            ["inspect", root, "--duplicates"],
            ["diff", root, root],
        ):
            bench.run(*words)
    elif what == "metrics":
        _train(bench, "run", 2)
        bench.write("run/metrics.jsonl", json.dumps({"step": EVIL, EVIL: 1}) + "\n")
        _train(bench, "run", 3, code=None)
    else:
        bench.write(
            "r.yaml",
            json.dumps(
                {"source": {"name": EVIL}, "mix": {EVIL: 1}, "clean": {"filters": [{"name": EVIL}]}, EVIL: 1}
            ),
        )
        bench.run("run", bench.root / "r.yaml", "--out", bench.root / "x")
        bench.run("run", bench.root / "r.yaml", "--out", bench.root / "x", "--json")


def _evil(tree: Any) -> str:
    """JSON of the tree with every text in it exchanged."""
    if isinstance(tree, dict):
        return json.dumps({key: json.loads(_evil(value)) for key, value in tree.items()})
    if isinstance(tree, list):
        return json.dumps([json.loads(_evil(value)) for value in tree])
    return json.dumps(EVIL if isinstance(tree, str) else tree)


@probe(TERMINALS, "added token", "eos", "model")
def controls_in_a_tokenizer(bench: Bench, place: str) -> None:
    from tests.tokenizer.makers import OTHERS

    bench.corpus()
    tree = json.loads(OTHERS["word_level"]().to_str())
    if place == "added token":
        tree["added_tokens"].append({"id": 9999, "content": EVIL, "single_word": False, "lstrip": False, "rstrip": False,
                                     "normalized": False, "special": True})  # fmt: skip
    elif place == "model":
        tree["model"]["type"] = EVIL
    bench.write("tokenizer.json", json.dumps(tree))
    eos = EVIL if place == "eos" else "</s>"
    bench.write("r.yaml", json.dumps({"tokenizer": {"name": str(bench.root / "tokenizer.json"), "eos": eos}}))
    ended = bench.run("run", bench.root / "r.yaml", "--source", bench.root / "a.jsonl", "--out", bench.root / "o", "--seq-len", "16",
                      "--workers", "1")  # fmt: skip
    if ended.code == 0:
        bench.run("inspect", bench.root / "o", "--sample", "0", code=0)


@probe(TERMINALS, NAME, "[red]", "%s", "a\nb")
def controls_in_the_names_of_a_run(bench: Bench, name: str) -> None:
    _train(bench, f"{name}-run", 2, code=None)
    bench.run("generate", "--model-dir", bench.root / f"{name}-none", "--prompt", EVIL, program="btlm_train")
    bench.run("import", bench.root / name, "--model-dir", bench.root / "x", program="btlm_train")
    bench.run("eval-lengths", "--model-dir", name, "--data", name, "--out", name, program="btlm_train")


# Flipped bits ------------------------------------------------------------------------------------------------------


def _flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


@probe(FLIPS, 1, 2, 3)
def of_an_emitted_text_are_noticed(bench: Bench, seed: int) -> None:
    """By `verify`, or by the next run, which looks at whose text it is."""
    bench.corpus()
    text = ("--emit-text", bench.root / "text")
    bench.prepare("a.jsonl", "out", *text)
    assert not bench.failing_checks(bench.root / "text")
    kept = {path: path.read_bytes() for path in (bench.root / "text").rglob("*") if path.is_file()}
    chance = random.Random(seed)
    for path in sorted(kept) * 4:
        _flip(path, chance)
        assert (
            bench.failing_checks(bench.root / "text")
            or bench.prepare("a.jsonl", "out", *text, code=None).code
        )
        for name, data in kept.items():
            name.write_bytes(data)


@probe(
    FLIPS,
    "forgotten.json",
    "dataset.json",
    "provenance.json",
    "train/documents.parquet",
    "train/data-00000.h5",
)
def of_a_dataset_after_forget_are_noticed(bench: Bench, name: str) -> None:
    root = bench.dataset()
    bench.run("forget", root, "--id", "train/a.jsonl#0", code=0)
    assert not bench.failing_checks(root)
    whole, chance = (root / name).read_bytes(), random.Random(name)
    for _ in range(12):
        _flip(root / name, chance)
        assert bench.failing_checks(root)
        (root / name).write_bytes(whole)


@probe(
    FLIPS,
    "run.json",
    "params.json",
    "data.json",
    "state.json",
    "model.safetensors",
    "optimizer.safetensors",
    slow=True,
)
def of_a_run_are_noticed_or_without_effect(bench: Bench, name: str) -> None:
    _train(bench, "whole", 6)
    _train(bench, "run", 4)
    shutil.copytree(bench.root / "run", bench.root / "kept")
    chance = random.Random(name)
    for _ in range(4):
        shutil.rmtree(bench.root / "run")
        shutil.copytree(bench.root / "kept", bench.root / "run")
        paths = sorted((bench.root / "run").rglob(name))
        if not paths:
            return
        _flip(paths[-1], chance)
        words = _train(bench, "run", 6, code=None)
        path = bench.root / "run/checkpoints/step_00000006/model.safetensors"
        whole = bench.root / "whole/checkpoints/step_00000006/model.safetensors"
        assert not path.exists() or path.read_bytes() == whole.read_bytes(), words


@probe(FLIPS, "npy", "megatron", "mds")
def of_an_export_whose_files_are_gone_or_cut(bench: Bench, to: str) -> None:
    root = bench.dataset()
    bench.run("export", root, "--to", to, "--out", bench.root / "out", code=0)
    sound = bench.hashes("out")
    largest = max(
        (path for path in (bench.root / "out").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    for left in (None, 10):
        if left is None:
            largest.unlink()
        else:
            os.truncate(largest, left)
        ended = bench.run("export", root, "--to", to, "--out", bench.root / "out")
        assert ended.code != 0 or bench.hashes("out") == sound, ended.words
        bench.run("export", root, "--to", to, "--out", bench.root / "out", "--overwrite", code=0)
        assert bench.hashes("out") == sound


# Same bytes --------------------------------------------------------------------------------------------------------


@probe(BYTES, "src/", "./src", "../{0}/src", "{1}", "file://{1}", "link", slow=True)
def another_way_to_the_source(bench: Bench, how: str) -> None:
    expected = _expected(bench)
    (bench.root / "link").symlink_to(bench.root / "src")
    source = how.format(bench.root.name, bench.root / "src")
    bench.run(
        "prepare",
        "--source",
        source,
        "--out",
        bench.root / "out",
        "--seq-len",
        "64",
        "--workers",
        "1",
        code=0,
    )
    assert bench.hashes("out") == expected


@probe(BYTES, "ö ü", "a'b\"c", "x" * 200, "-dash", "%41", "src.jsonl", "train", slow=True)
def another_name_of_the_folder(bench: Bench, name: str) -> None:
    expected = _expected(bench)
    shutil.copytree(bench.root / "src", bench.root / "deep" / name)
    bench.prepare(f"deep/{name}", f"deep/{name}-out")
    assert bench.hashes(f"deep/{name}-out") == expected


@probe(BYTES, {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"}, {"HOME": "/nonexistent"}, {"TMPDIR": "/dev/shm"},
       {"PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"}, {"PYTHONHASHSEED": "random", "TZ": "UTC-14"}, {"MALLOC_ARENA_MAX": "1"},
       {"NUMBA_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}, {"PYTHONMALLOC": "debug"}, slow=True)  # fmt: skip
def one_more_environment(bench: Bench, environment: dict[str, str]) -> None:
    expected = _expected(bench)
    done = bench.process(
        "prepare", "--source", "src", "--out", "out", "--seq-len", "64", "--workers", "2", env=environment
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert bench.hashes("out") == expected


@probe(
    BYTES, "ulimit -n 40", "umask 0", "umask 0177", "nice -n 5 true", "ulimit -s 512", "cd /; true", slow=True
)
def another_shell(bench: Bench, setting: str) -> None:
    expected = _expected(bench)
    prefix = ["bash", "-c", f'{setting}; exec "$@"', "-"]
    done = bench.process("prepare", "--source", bench.root / "src", "--out", bench.root / "out", "--seq-len", "64", "--workers", "2",
                         prefix=prefix)  # fmt: skip
    if done.returncode != 0:  # folders that nobody may enter, or too few descriptors: in words
        assert done.stderr.decode().splitlines()[-1].startswith("error: "), done.stderr[-800:]
        assert done.returncode in (3, 4), done.stderr[-800:]
        return
    assert bench.hashes("out") == expected


@probe(BYTES, "2001-09-09", "1970-01-02", "2100-01-01", slow=True)
def other_times_of_files_and_folders(bench: Bench, day: str) -> None:
    from datetime import datetime

    expected = _expected(bench)
    seconds = datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp()
    for path in [bench.root / "src", *(bench.root / "src").rglob("*")]:
        os.utime(path, (seconds, seconds))
    bench.prepare("src", "out")
    assert bench.hashes("out") == expected


@probe(
    BYTES,
    ("-v",),
    ("--no-report",),
    ("--log-file", "log"),
    ("--json",),
    ("--memory", "1GB"),
    ("--work-dir", "elsewhere"),
    slow=True,
)
def another_way_to_look_on(bench: Bench, more: tuple[str, ...]) -> None:
    expected = _expected(bench)
    bench.prepare("src", "out", *more)
    assert bench.hashes("out") == expected
