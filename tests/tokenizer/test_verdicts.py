"""Tokenizers made to do harm end in words within bounds; a verdict is remembered where that is possible."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pickle
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from btlm_data.errors import ConfigError
from btlm_data.tokenizer import load_tokenizer, self_check, verdicts
from btlm_data.tokenizer.backends import panics_are_errors

ROOT = Path(__file__).resolve().parents[2]
VOCAB = {"[UNK]": 0, "a": 1, "b": 2, "</s>": 3}


def plain() -> dict[str, Any]:
    made = tokenizers.Tokenizer(models.WordLevel(VOCAB, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["</s>"])
    value: dict[str, Any] = json.loads(made.to_str())
    return value


def write(tmp_path: Path, value: dict[str, Any] | str) -> str:
    path = tmp_path / "tokenizer.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def replace_with(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def nested(kind: str, inner: str, depth: int) -> str:
    """A component within `depth` others of its kind, as JSON (too deep for json.dumps)."""
    return f'{{"type": "Sequence", "{kind}": [' * depth + inner + "]}" * depth


def with_text(key: str, text: str) -> str:
    return json.dumps({**plain(), key: "HERE"}).replace('"HERE"', text)


HARMFUL: dict[str, Callable[[], dict[str, Any] | str]] = {
    "regex in the pre-tokenizer": lambda: {**plain(), "pre_tokenizer": split("(a+)+$")},
    "regex with other letters": lambda: {**plain(), "pre_tokenizer": split("(?:x+x+)+y")},
    "regex over pairs": lambda: {**plain(), "pre_tokenizer": split("(?:(?:pq)+(?:pq)+)+z")},
    "regex over classes": lambda: {**plain(), "pre_tokenizer": split(r"(?:\p{L}+\p{L}+)+z")},
    "regex in the normalizer": lambda: {**plain(), "normalizer": replace_with({"Regex": "(b|b)*c"}, "")},
    "growing normalizer": lambda: {**plain(), "normalizer": replace_with({"String": "q"}, "q" * 1000)},
    "exponential normalizer": lambda: {
        **plain(),
        "normalizer": {"type": "Sequence", "normalizers": [replace_with({"String": "z"}, "zzzzzzzz")] * 20},
    },
    "prepending normalizer": lambda: {
        **plain(),
        "normalizer": {"type": "Prepend", "prepend": "x" * 1_000_000},
    },
    "deep normalizer": lambda: with_text("normalizer", nested("normalizers", '{"type": "NFC"}', 50)),
    "very deep normalizer": lambda: with_text("normalizer", nested("normalizers", '{"type": "NFC"}', 50_000)),
    "deep pre-tokenizer": lambda: with_text(
        "pre_tokenizer", nested("pretokenizers", '{"type": "Whitespace"}', 900)
    ),
    "many components": lambda: {
        **plain(),
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 20_000},
    },
    "brackets": lambda: "[" * 200_000,
    "an id of 2^40": lambda: {**plain(), "model": {**plain()["model"], "vocab": {"[UNK]": 2**40, "</s>": 3}}},
    "too many tokens": lambda: {
        **plain(),
        "model": {**plain()["model"], "vocab": {str(i): i % 1000 for i in range(2**21 + 1)}},
    },
    "a negative id": lambda: {**plain(), "model": {**plain()["model"], "vocab": {"[UNK]": -1, "</s>": 3}}},
    "an id that is text": lambda: {**plain(), "model": {**plain()["model"], "vocab": {"[UNK]": "0"}}},
    "an empty vocabulary": lambda: {**plain(), "model": {**plain()["model"], "vocab": {}}},
    "an added token without text": lambda: {**plain(), "added_tokens": [{"id": 3, "content": ""}]},
    "an added token of another type": lambda: {**plain(), "added_tokens": [3]},
    "an added token with a far id": lambda: {
        **plain(),
        "added_tokens": [{"id": 9_000_000, "content": "</s>2", "special": True}],
    },
    "a normalizer that is a list": lambda: {**plain(), "normalizer": []},
    "an unknown model": lambda: {**plain(), "model": {"type": "X", "vocab": VOCAB}},
    "BPE with a list": lambda: {**plain(), "model": {"type": "BPE", "vocab": [["a", 1.0]], "merges": []}},
    "merges of numbers": lambda: {**plain(), "model": {"type": "BPE", "vocab": VOCAB, "merges": [1, 2]}},
    "no object": lambda: "3",
    "not UTF-8": lambda: '{"\\ud800": 1}',
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_tokenizer_ends_in_words_within_bounds(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "_SECONDS", 3)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(write(tmp_path, HARMFUL[name]()))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    assert len(str(caught.value)) < 2000


def test_growth_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"normalizer makes 40,\d+ characters of 'qqqqqqqqqq'"):
        load_tokenizer(write(tmp_path, HARMFUL["growing normalizer"]()))


def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(ConfigError, match="it is not a file"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))


def test_ordinary_rules_are_not_taken_for_harmful(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(models.WordLevel(VOCAB, unk_token="[UNK]"))
    made.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"), normalizers.Lowercase()]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens(["</s>"])
    assert load_tokenizer(write(tmp_path, json.loads(made.to_str()))).backend == "tokenizers"


# What is remembered


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checks that were run, in this process or another."""
    run: list[str] = []

    def here(config: object) -> self_check.Checked:
        run.append("here")
        return self_check.Checked(self_check.Verdict("fastokens"))

    def there(config: object) -> self_check.Checked:
        run.append("there")
        return self_check.Checked(self_check.Verdict("tokenizers", "of a test"))

    monkeypatch.setattr(verdicts, "check", here)
    monkeypatch.setattr(verdicts, "_check_in_limits", there)
    return run


def test_a_verdict_is_remembered_for_a_content(tmp_path: Path, checks: list[str], cache_folder: Path) -> None:
    load_tokenizer("gpt2")
    load_tokenizer("gpt2")
    assert checks == ["here"]
    spec = write(tmp_path, plain())
    load_tokenizer(spec)
    load_tokenizer(spec)
    assert checks == ["here", "there"]
    changed = plain()
    changed["model"]["vocab"]["c"] = 4
    load_tokenizer(write(tmp_path, changed))
    assert checks == ["here", "there", "there"]
    assert len(list(cache_folder.rglob("*.json"))) == 3


def test_another_version_of_a_library_is_checked_anew(
    checks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_tokenizer("gpt2")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.0")
    load_tokenizer("gpt2")
    assert checks == ["here", "here"]


@pytest.mark.parametrize("kind", ["a file", "read-only", "no home", "relative"])
def test_without_a_cache_folder_it_is_checked_at_every_start(
    kind: str, checks: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative" if kind == "relative" else str(folder))
    monkeypatch.chdir(tmp_path)
    if kind == "a file":
        folder.write_text("x")
    elif kind == "read-only":
        folder.mkdir()
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
        monkeypatch.setattr(Path, "mkdir", _refuse)  # root may write anywhere
    elif kind == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", "/proc/none")
    for _ in range(2):
        assert load_tokenizer("gpt2").backend == "fastokens"
    assert checks == ["here", "here"]
    assert not (tmp_path / "relative").exists()


def _refuse(*args: Any, **options: Any) -> None:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"backend": "other"}', b'{"backend": null}', b"\xff" * 100_000]
)
def test_a_damaged_verdict_is_not_believed(content: bytes, checks: list[str], cache_folder: Path) -> None:
    load_tokenizer("gpt2")
    (path,) = cache_folder.rglob("*.json")
    path.write_bytes(content)
    assert load_tokenizer("gpt2").backend == "fastokens"
    assert checks == ["here", "here"]


def test_a_remembered_verdict_decides_the_backend(cache_folder: Path) -> None:
    load_tokenizer("gpt2")
    (path,) = cache_folder.rglob("*.json")
    path.write_text('{"backend": "tokenizers", "reason": "of a test"}')
    assert load_tokenizer("gpt2").backend == "tokenizers"


def test_the_check_imports_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "btlm_data").mkdir()
    (tmp_path / "btlm_data" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "msgspec.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    assert load_tokenizer(write(tmp_path, plain())).eos_id == 3


def test_a_library_that_panics_ends_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    def panic(self: object, texts: object) -> None:
        with panics_are_errors("fastokens"):
            raise PanicException("index out of bounds")

    monkeypatch.setattr("btlm_data.tokenizer.backends.Fast.encode", panic)
    assert load_tokenizer("gpt2").backend == "tokenizers"


# Other processes


def test_a_spec_is_complete_in_a_fresh_interpreter_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "here", plain())
    monkeypatch.chdir(tmp_path / "here")
    specs = [load_tokenizer("tokenizer.json").spec, load_tokenizer(".").spec, load_tokenizer("gpt2").spec]
    code = (
        "import pickle, sys\n"
        "for spec in pickle.loads(bytes.fromhex(sys.argv[1])): print(spec.load().encode_batch(['a "
        "b'])[0].tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, pickle.dumps(specs).hex()],
        cwd=tmp_path / "elsewhere",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[1, 2]\n[1, 2]\n[64, 275]\n"
