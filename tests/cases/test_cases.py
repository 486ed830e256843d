"""Every case of the table gives what is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases.model import Case, byte_tokenizer, differences, prepare
from tests.cases.table import CASES


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(
    case: Case,
    tokenizer: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    case.make(folder)
    monkeypatch.chdir(tmp_path)
    source = case.source[1:] if case.source.startswith("\0") else str(folder / case.source)
    options = [str(folder / one[1:]) if one.startswith("\0") else one for one in case.options]

    def read() -> str:
        printed = capfd.readouterr()
        return printed.out + printed.err

    wrong = differences(case, prepare(source, tmp_path / "out", tokenizer, options, read))
    if wrong:
        pytest.fail("\n".join([case.report, *wrong]), pytrace=False)
