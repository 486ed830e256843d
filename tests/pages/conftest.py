"""A corpus of hostile text, the dataset made of it, and a browser that tells of every error and every request."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import btlm_data

SCRIPT = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
TURNED = "user\u202egpj.exe\u2066 and a bell \x07 and \x1b[31m"
VOCABULARY = [word for word in (Path(__file__).parents[2] / "LICENSE").read_text().split() if word.isalpha()]
PLANTED = "the quick zebra signs a planted sentence"


def words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choices(VOCABULARY, k=count))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 documents of two sources, whose names and texts are hostile; duplicates; records that cannot be read."""
    folder = tmp_path_factory.mktemp("corpus")
    chance = random.Random(7)
    lines: list[str] = []
    for number in range(200):
        text = words(chance, 120)
        if number == 20:
            text = f"{SCRIPT} {TURNED} {PLANTED} {words(chance, 300)}"
        if number == 21:
            text = "x" * 1_000_000 + " end of a long line"
        if number == 22:
            text = words(chance, 100_000)
        if number in (31, 41):
            text = json.loads(lines[30])["text"]
        if number == 51:
            text = json.loads(lines[50])["text"].replace(" of ", " edited ", 1) + " edited"
        source = ("<b>Web</b>", "Books")[number % 2]
        lines.append(json.dumps({"text": text, "meta": {"redpajama_set_name": source}}))
    lines += ['{"text": "<i>cut', '{"no": "text"}']
    (folder / "a <script>.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def shards(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset made of it, with its report."""
    out = tmp_path_factory.mktemp("hostile") / "shards"
    recipe = {"source": str(corpus), "seq_len": 512, "run": {"out": str(out), "workers": 1}}
    btlm_data.prepare(recipe, holdout__fraction=0.05, clean__filters=[{"min_chars": 20}])
    return out
