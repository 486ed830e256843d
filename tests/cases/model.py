"""A case: files as somebody has them, the command as he types it, and what is right then."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from btlm_data import entry
from btlm_data.cli import cli

Documents = Sequence[int | str]
"""Documents in the order of their files: a number stands for `text(number)`."""


def text(number: int) -> str:
    """A document of about 300 characters that no other number gives."""
    return f"Document number {number}. " + " ".join(f"word{number}x{place}" for place in range(30))


def lines(numbers: Iterable[int], **fields: Any) -> bytes:
    """JSON Lines of these documents."""
    return b"".join(json.dumps({"text": text(number), **fields}).encode() + b"\n" for number in numbers)


@dataclass(frozen=True)
class Case:
    """One input. What is not given is not expected: no reject, nothing left out, exit code 0.

    report: public reports of the same kind. make: writes the files below an empty folder. source: what
    --source names, below that folder. documents: of the train split; others: of the other splits. rejects:
    reason -> lines in rejects.jsonl. left_out: words that the reasons of what is not read contain -> files.
    says: words on the screen; never_says: words that may not be there.
    """

    name: str
    report: str
    make: Callable[[Path], None]
    documents: Documents = ()
    others: Mapping[str, Documents] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    source: str = ""
    rejects: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    says: tuple[str, ...] = ()
    never_says: tuple[str, ...] = ()
    exit_code: int = 0


@dataclass
class Outcome:
    """What a run of `prepare` came to."""

    exit_code: int
    words: str
    documents: dict[str, list[str]]
    rejects: Counter[str]
    left_out: dict[str, int]


def prepare(
    source: str, out: Path, tokenizer: str, options: Sequence[str], read: Callable[[], str]
) -> Outcome:
    """Run `prepare` as the command line does; read: gives what was printed since it was last called."""
    arguments = ["prepare", "--source", source, "--out", str(out), "--workers", "1", "--seq-len", "64"]
    arguments += ["--tokenizer", tokenizer, "--format", "corpus", "--shuffle", "none", "--dedupe", "none"]
    for setting in ("clean.min_chars=0", "clean.normalize=none", "source.max_rejected=0.6"):
        arguments += ["--set", setting]
    read()
    code = entry._exit_code(cli, [*arguments, *options])
    words = re.sub(r"\s+", " ", read())
    if code:
        return Outcome(code, words, {}, Counter(), {})
    manifest = json.loads((out / "dataset.json").read_text())
    provenance = json.loads((out / "provenance.json").read_text())
    rejected = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    return Outcome(
        code,
        words,
        {split: _documents(out / split, tokenizer) for split in manifest["splits"]},
        Counter(reject["reason"] for reject in rejected),
        {one["reason"]: one["count"] for one in provenance["source"]["left_out"]},
    )


def differences(case: Case, got: Outcome) -> list[str]:
    """What is not as it should be; nothing where the case is right."""
    found = []
    if got.exit_code != case.exit_code:
        return [f"exit code {got.exit_code}, not {case.exit_code}: {got.words[-600:]}"]
    expected = {"train": case.documents, **case.others} if not case.exit_code else {}
    for split in sorted({*expected, *got.documents}):
        wanted = [text(one) if isinstance(one, int) else one for one in expected.get(split, ())]
        if wanted != got.documents.get(split, []):
            shown = [one[:40] for one in got.documents.get(split, [])]
            found.append(f"{split}: {len(wanted)} documents expected, these found: {shown}")
    if dict(case.rejects) != dict(got.rejects):
        found.append(f"rejects {dict(got.rejects)}, not {dict(case.rejects)}")
    for reason, count in case.left_out.items():
        if sum(number for name, number in got.left_out.items() if reason in name) != count:
            found.append(f"left out {got.left_out}, not {reason}: {count}")
    if not case.exit_code and sum(got.left_out.values()) != sum(case.left_out.values()):
        found.append(f"left out {got.left_out}, not {dict(case.left_out)}")
    found += [f"does not say {words!r}: {got.words[-1500:]}" for words in case.says if words not in got.words]
    found += [f"says {words!r}" for words in (*case.never_says, "Traceback") if words in got.words]
    return found


def byte_tokenizer(path: Path) -> str:
    """Save a tokenizer with a token for each byte, which is quick to load; returns its path."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({character: number for number, character in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(path))
    return str(path)


def _documents(folder: Path, tokenizer: str) -> list[str]:
    """The documents of a split, read back from its token stream."""
    parts = []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            parts.append(file["data"][:])
    stream = np.concatenate(parts) if parts else np.zeros(0, np.uint16)
    loaded = Tokenizer.from_file(tokenizer)
    ends = np.flatnonzero(stream == loaded.token_to_id("<|endoftext|>"))
    begins = [0, *(ends + 1)]
    return [loaded.decode(stream[begin:end].tolist()) for begin, end in zip(begins, ends, strict=False)]
