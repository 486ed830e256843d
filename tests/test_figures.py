"""The pictures of the terminal show what the program says now (tools/write_figures.py writes them)."""

from __future__ import annotations

import html
import re
import tempfile
from pathlib import Path

import pytest

from tools import write_figures

pytestmark = pytest.mark.skipif(not hasattr(write_figures, "pty"), reason="needs a pseudo terminal")

# What differs from run to run: folders, times and rates, and how wide the columns are that hold them.
_VARIES = re.compile(
    r"/tmp/\S*|[\d.,]+|\b[kMGT]?B\b|\b(?:s|min|h|k|M|G)\b|documents?/s|tokens?/s|tasks?/s|/s|[━╸╺%·│─…\u2580-\u259f]"
)


def words_of_picture(path: Path) -> str:
    """What a picture shows, without what varies."""
    rows: dict[float, list[tuple[float, str]]] = {}
    for x, y, text in re.findall(
        r'<text[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>', path.read_text()
    ):
        rows.setdefault(float(y), []).append((float(x), html.unescape(text)))
    lines = ["".join(text for _, text in sorted(row)) for y, row in sorted(rows.items())]
    return unvaried("\n".join(line for line in lines if line != "btlm-data"))


def unvaried(text: str) -> str:
    """What of a screen is the same in every run, without spaces: where lines end depends on the rest."""
    return "".join(_VARIES.sub(" ", text.replace("\xa0", " ")).split())


@pytest.mark.parametrize("width", [80, pytest.param(120, marks=pytest.mark.stress)])
def test_pictures_are_not_stale(width: int) -> None:
    with tempfile.TemporaryDirectory() as folder:  # a short path, as in the pictures
        write_figures.write_corpus(Path(folder))
        for name, command in write_figures.COMMANDS.items():
            path = write_figures.FIGURES / f"{name}-{width}.svg"
            screen = write_figures.run(command, folder, width).plain
            assert words_of_picture(path) == unvaried(f"$ btlm-data {command}\n{screen}"), (
                f"{path.name} shows what the program said before: run python tools/write_figures.py"
            )


def test_a_stale_picture_is_noticed(tmp_path: Path) -> None:
    picture = (write_figures.FIGURES / "inspect-80.svg").read_text()
    changed = tmp_path / "inspect.svg"
    changed.write_text(picture.replace("Verdicts", "Judgements"))
    assert words_of_picture(changed) != words_of_picture(write_figures.FIGURES / "inspect-80.svg")
