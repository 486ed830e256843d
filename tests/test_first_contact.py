"""How much a newcomer reads, from a clone to his own prepared corpus: counted, so that it does not grow unnoticed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from btlm_data import entry
from btlm_data.cli import cli
from tests.cases.model import byte_tokenizer, lines

ROOT = Path(__file__).resolve().parent.parent


def lines_up_to(page: str, pattern: str) -> int:
    """Lines with something on them, from the top of a page to the first that matches."""
    count = 0
    for line in (ROOT / page).read_text().splitlines():
        count += bool(line.strip())
        if re.search(pattern, line):
            return count
    raise AssertionError(f"{page} has no line like {pattern}")


def test_a_tidy_corpus_needs_the_beginning_of_the_readme() -> None:
    assert lines_up_to("README.md", r"^pip install \.") <= 12
    assert lines_up_to("README.md", r"^btlm-data prepare --source my_corpus/") <= 13


def test_a_messy_corpus_needs_two_sections_more() -> None:
    to_the_guide = lines_up_to("README.md", r"\(docs/own-corpus\.md\)")
    in_the_guide = lines_up_to("docs/own-corpus.md", r"^btlm-data prepare .*--text-field body\.content --out")
    assert to_the_guide + in_the_guide <= 50


def test_the_end_of_a_run_is_four_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_corpus").mkdir()
    Path("my_corpus/a.jsonl").write_bytes(lines(range(30)))
    tokenizer = byte_tokenizer(tmp_path / "tokenizer.json")
    command = ["prepare", "--source", "my_corpus/", "--seq-len", "64", "--out", "shards/", "--workers", "1"]
    assert entry._exit_code(cli, [*command, "--tokenizer", tokenizer]) == 0
    said = capsys.readouterr().err.splitlines()
    steps = re.compile(r"[a-z]+(: [a-z-]+)?: (\d[\d,]* tasks?|done in)")
    assert [line.split()[0] for line in said if not steps.match(line)] == [
        "Prepared",
        "Kept",
        "Dataset:",
        "Next:",
    ]
