"""Check the text that `--emit-text` wrote: every file that its files.json names, by size, SHA-256 and number of documents."""

from __future__ import annotations

from pathlib import Path

import zstandard

from btlm_data.errors import BtlmError
from btlm_data.formats.dataset import FILE_NAME
from btlm_data.formats.guarded import reading, require_regular
from btlm_data.inspection.check import Check, Report, tell_problems
from btlm_data.stages.emit_folder import RECORD, read
from btlm_data.storage import open_store
from btlm_data.storage.digest import sha256_file
from btlm_data.wording import counted

_PIECE_BYTES = 1 << 20


def is_text_folder(path: Path) -> bool:
    """Whether a folder holds emitted text, and no dataset."""
    return (path / RECORD).is_file() and not (path / FILE_NAME).exists()


def check_text(folder: Path, report: Report) -> list[Check]:
    """One check of all files; returned too."""
    problems: list[str] = []
    documents = 0
    try:
        record = read(open_store(folder))
        names = record.names
    except BtlmError as error:
        names = set()
        problems.append(str(error))
    else:
        if not record.complete:
            problems.append(f"{RECORD}: the text is not complete; run the same `btlm-data prepare` again")
        for file in record.files:
            _check_file(folder / str(file.get("name")), file, problems)
            documents += file["documents"] if isinstance(file.get("documents"), int) else 0
        present = {path.relative_to(folder).as_posix() for path in folder.rglob("*.jsonl.zst")}
        problems += [f"{name}: {RECORD} does not list it" for name in sorted(present - names)]
    checks: list[Check] = []
    detail = f"{counted(len(names), 'file')}, {counted(documents, 'document')}: size, SHA-256 and number of lines as recorded"
    tell_problems(checks.append, "text", problems, detail)
    for check in checks:
        report(check)
    return checks


def _check_file(path: Path, file: dict[str, object], problems: list[str]) -> None:
    name = str(file.get("name"))
    if not path.is_file():
        problems.append(f"{name}: missing")
        return
    try:
        require_regular(path)
        with reading(path):
            measured = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            if all(measured[key] == file.get(key) for key in measured):
                measured["documents"] = _lines(path)
    except BtlmError as error:
        problems.append(str(error))
        return
    problems += [
        f"{name}: {key} is {value}, {RECORD} says {file.get(key)}"
        for key, value in measured.items()
        if value != file.get(key)
    ]


def _lines(path: Path) -> int:
    with (
        path.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as text,
    ):
        return sum(piece.count(b"\n") for piece in iter(lambda: text.read(_PIECE_BYTES), b""))
