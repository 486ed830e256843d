"""README.md of a dataset, in the form of the Hugging Face hub: facts for programs in its head, then words for
people.

Everything in it comes from dataset.json and provenance.json. What only a person can know (who made it, for
what, under which licences) is marked as to be filled in. Names of sources and files come from outside: they
are put so that Markdown does not read them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from btlm_data.formats import pages as seals
from btlm_data.formats.dataset import Dataset
from btlm_data.formats.ledger import STAGES, total
from btlm_data.formats.provenance import Provenance
from btlm_data.inspection.figures import number, percent, size
from btlm_data.terminal import visible

FILL = "*(to be filled in by a person)*"
SUMMARY = "Summary of training content"
MAX_SOURCES = 50
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
          (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B"))  # fmt: skip
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|<>~&$-])")


def readme(sets: Mapping[str, Dataset], made: Provenance | None, checksum: str, *, eu: bool) -> bytes:
    """The card. sets: by folder, "" where there is one; of a dataset that grew, those of all generations. checksum: of the
    dataset's dataset.json.

    made: its provenance, for licences and places; None where there is none. eu: with the European
    Commission's summary of training content (C(2025) 8311), as far as it is known.
    """
    body = "\n".join([*_body(sets, made), *(_summary(sets, made) if eu else ())])
    return seals.sealed_card("\n".join(_head(sets)), body, checksum)


def title(sets: Mapping[str, Dataset]) -> str:
    """What the dataset is called: by its size and fingerprint, for it has no other name."""
    tokens = sum(split.label_tokens for dataset in sets.values() for split in dataset.splits.values())
    fingerprint = next(iter(sets.values())).fingerprint
    return f"Pretraining dataset {fingerprint[:8]}, {number(tokens)} tokens"


def _head(sets: Mapping[str, Dataset]) -> Iterator[str]:
    """YAML that the hub reads. Values are JSON, which is YAML."""
    samples = sum(split.samples or 0 for dataset in sets.values() for split in dataset.splits.values())
    yield f"pretty_name: {json.dumps(title(sets))}"
    yield "license: unknown"
    languages = _languages(next(iter(sets.values())))
    if languages:
        yield f"language: {json.dumps(languages)}"
    yield 'task_categories: ["text-generation"]'
    yield f"size_categories: {json.dumps([_size_category(samples)])}"
    yield 'tags: ["pretraining", "tokenized", "hdf5", "btlm-data"]'
    yield "viewer: false"
    yield "dataset_info:"
    for folder, dataset in sets.items():
        yield f"- config_name: {json.dumps(folder or 'default')}"
        yield "  splits:"
        for split, entry in dataset.splits.items():
            yield f"  - name: {split}"
            yield f"    num_examples: {entry.samples or 0}"
            yield f"    num_bytes: {sum(file.bytes for file in entry.files)}"


def _size_category(samples: int) -> str:
    return next((words for limit, words in _SIZES if samples < limit), "100B<n<1T")


def _languages(dataset: Dataset) -> list[str]:
    """The languages that a filter kept; empty where none did."""
    clean = dataset.configuration.get("clean")
    for entry in clean.get("filters", []) if isinstance(clean, dict) else []:
        if (
            isinstance(entry, dict)
            and entry.get("name") == "language"
            and isinstance(entry.get("keep"), list)
        ):
            return [str(code) for code in entry["keep"] if re.fullmatch(r"[a-z]{2,3}", str(code))]
    return []


def plain(text: object) -> str:
    """A name or text so that Markdown and HTML do not read it."""
    return _MARKDOWN.sub(r"\\\1", visible(str(text)).replace("\n", " ")) or "(unnamed)"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines] + [""]


def _body(sets: Mapping[str, Dataset], made: Provenance | None) -> Iterator[str]:
    first, added = next(iter(sets.values())), _added(sets)
    yield f"# {title(sets)}\n"
    yield (
        "Text as token ids, packed into samples for pretraining a language model, prepared with btlm-data. "
        f"{FILL}: what it is for, and who made it.\n"
    )
    yield "## What is in it\n"
    rows = []
    for folder, dataset in sets.items():
        for split, entry in dataset.splits.items():
            rows.append([
                f"`{folder + '/' if folder else ''}{split}`", f"{entry.samples or 0:,}", f"{dataset.seq_len:,}",
                f"{entry.documents:,}", f"{entry.label_tokens:,}", size(sum(file.bytes for file in entry.files)),
            ])  # fmt: skip
    yield from _table(("split", "samples", "length", "documents", "tokens", "on disk"), rows)
    tokenizer = first.tokenizer
    yield (
        f"Format `{first.format}` (HDF5, one dataset `data` a file). Tokenizer {plain(tokenizer.name)}, {tokenizer.vocab_size:,} ids, "
        f"fingerprint `{tokenizer.fingerprint}`; documents end with id {tokenizer.eos_id}. Seed {first.seed}, shuffle: {first.shuffle}.\n"
    )
    if added:
        yield (
            f"Documents were added to this dataset: it has {1 + len(added)} generations, each a dataset in a folder of its own, "
            "with a card. btlm-data and its readers take all of them as one. Below, the recipe and the limits are those of the "
            "first.\n"
        )
    yield "## Sources\n"
    yield from _table(
        ("source", "documents", "text", "tokens", "share", "licence"), list(_sources([first, *added]))
    )
    licence = made.source.get("license") if made is not None else None
    if licence:
        yield f"Of the licences, the registered source says: {plain(licence)}\n"
    yield "## From source to shard\n"
    flow = []
    for stage in STAGES[:6]:
        cells = [cell for dataset in (first, *added) for cell in dataset.ledger]
        came, out = total(cells, stage, "in"), total(cells, stage, "out")
        reasons: dict[str, int] = {}
        for row in (row for dataset in (first, *added) for row in dataset.rows(stage)):
            for reason, amounts in row.dropped.items():
                reasons[reason] = reasons.get(reason, 0) + amounts.documents
        lost = ", ".join(
            f"{n:,} {plain(reason.replace('_', ' '))}"
            for reason, n in sorted(reasons.items(), key=lambda i: -i[1])
            if n
        )
        flow.append([stage, f"{came.documents:,}", f"{out.documents:,}", lost or "nothing"])
    yield from _table(("stage", "documents in", "out", "dropped"), flow)
    yield "## Recipe\n"
    text = visible(json.dumps(first.configuration, indent=1, ensure_ascii=False)).replace("```", "` ` `")
    yield f"```json\n{text}\n```\n"
    yield "The same recipe and source give the same bytes: `btlm-data run dataset.json`. `btlm-data verify` reads everything again.\n"
    yield "## Known limits\n"
    yield from (f"- {limit}" for limit in _limits(first))
    yield f"- {FILL}: biases, personal data, and what else a user should know.\n"


def _added(sets: Mapping[str, Dataset]) -> list[Dataset]:
    """The later generations of a dataset that grew, each by its first set."""
    folders = {
        name.partition("/")[0]: name for name in reversed(list(sets)) if name.startswith("generation-")
    }
    return [sets[name] for _, name in sorted(folders.items())]


def _sources(generations: Sequence[Dataset]) -> Iterator[list[str]]:
    sums: dict[str, list[int]] = {}
    for row in (row for dataset in generations for row in dataset.rows("shuffle")):
        counts = sums.setdefault(row.source, [0, 0, 0])
        for k, value in enumerate(row.out.amount):
            counts[k] += value
    everything = sum(counts[2] for counts in sums.values()) or 1
    listed = sorted(sums.items(), key=lambda item: (-item[1][2], item[0]))
    for source, (documents, num_bytes, tokens) in listed[:MAX_SOURCES]:
        yield [
            plain(source),
            f"{documents:,}",
            size(num_bytes),
            number(tokens),
            percent(tokens / everything),
            FILL,
        ]
    if len(listed) > MAX_SOURCES:
        yield [f"{len(listed) - MAX_SOURCES:,} more", "", "", "", "", FILL]


def _limits(dataset: Dataset) -> Iterator[str]:
    clean, dedupe = dataset.configuration.get("clean"), dataset.configuration.get("dedupe")
    if not (isinstance(clean, dict) and clean.get("filters")):
        yield "No filter for quality, language or personal data was applied."
    method = dedupe.get("method") if isinstance(dedupe, dict) else None
    yield (
        "Duplicates were not looked for."
        if method == "none"
        else f"Duplicates were removed by the method {plain(method)}; some near ones stay."
    )
    if not {"validation", "test"} & dataset.splits.keys():
        yield "There is no held-out split."
    rejected = sum(a.documents for row in dataset.rows("acquire") for a in row.dropped.values())
    if rejected:
        yield f"{rejected:,} records could not be read and are missing (`rejects.jsonl`)."
    if dataset.left_out:
        yield f"Files of the source that were not read: {sum(left.files for left in dataset.left_out):,}."


# The Commission's summary -----------------------------------------------------------------------------------


def _summary(sets: Mapping[str, Dataset], made: Provenance | None) -> Iterator[str]:
    """The fields of the template for the public summary of training content, in its order."""
    first = next(iter(sets.values()))
    tokens = sum(split.label_tokens for dataset in sets.values() for split in dataset.splits.values())
    bracket = (
        "less than 1 billion"
        if tokens < 10**9
        else "1 billion to 10 trillion"
        if tokens <= 10**13
        else "more than 10 trillion"
    )
    yield f"## {SUMMARY} (EU, Article 53(1)(d) of Regulation (EU) 2024/1689)\n"
    yield "Filled from what the preparation knows of this dataset. A provider's summary covers all data of a model, so it has to be completed.\n"
    yield "### 1. General information\n"
    address = _address(made)
    answers = [
        ("1.1 Provider", FILL), ("1.2 Model", FILL), ("1.3 Modality", "Text"),
        ("1.3 Size of the text", f"{bracket} tokens ({tokens:,} tokens of {plain(first.tokenizer.name)}, {number(sum(map(_bytes, (first, *_added(sets)))))}B of text)"),
        ("1.3 Types of content", FILL), ("1.3 Latest date of acquisition", FILL),
        ("1.3 Languages", ", ".join(_languages(first)) or FILL),
    ]  # fmt: skip
    yield from _table(("field", "answer"), [list(answer) for answer in answers])
    yield "### 2. List of data sources\n"
    known = f"This dataset was made from {plain(address)}" if address else FILL
    answers = [
        ("2.1 Publicly available datasets", f"{known}. {FILL}: whether it is one, and its licence"),
        ("2.2 Private datasets of third parties", FILL), ("2.3 Crawled and scraped data", FILL), ("2.4 User data", FILL),
        ("2.5 Synthetic data", FILL), ("2.6 Other sources", FILL),
    ]  # fmt: skip
    yield from _table(("field", "answer"), [list(answer) for answer in answers])
    yield "### 3. Data processing\n"
    listed = (first.configuration.get("clean") or {}).get("filters")
    filters = json.dumps(listed, ensure_ascii=False) if listed else "none"
    answers = [
        ("3.1 Reservations of rights", FILL), ("3.2 Removal of illegal content", FILL),
        ("3.3 Other processing", f"Filters: {plain(filters)}; what was dropped, and why, is under From source to shard."),
    ]  # fmt: skip
    yield from _table(("field", "answer"), [list(answer) for answer in answers])


def _bytes(dataset: Dataset) -> int:
    return sum(row.out.bytes for row in dataset.rows("shuffle"))


def _address(made: Provenance | None) -> str | None:
    """The source as the recipe names it, without places on a machine."""
    source: Any = made.configuration.get("source") if made is not None else None
    name = source.get("name") if isinstance(source, dict) else None
    return str(name).rstrip("/").rsplit("/", 2 if "://" in str(name) else 1)[-1] if name else None
