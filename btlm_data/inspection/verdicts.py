"""What the figures of a report mean, in one sentence each: whether the data is fit to train on."""

from __future__ import annotations

import math
from collections.abc import Iterator

from btlm_data.inspection.figures import counted, number, percent
from btlm_data.inspection.report import Report, Shuffle, Split, Verdict
from btlm_data.records.batch import NO_TEXT_REASONS

SIGMAS = 4.0  # a perfect shuffle is further off once in 16,000 datasets
FEW = 50  # documents or samples, below which order says nothing
SMALL_HOLDOUT_DOCUMENTS = 200
SMALL_HOLDOUT_TOKENS = 200_000
POOR_PACKING = 0.97
MANY_REJECTED = 0.01
MANY_DUPLICATES = 0.5
ONE_SOURCE = 0.9  # of the train tokens
ENCODING_REASONS = ("invalid_utf8", "lone_surrogate")
HOLDOUTS = ("validation", "test")


def verdicts_on(report: Report) -> list[Verdict]:
    """Every verdict, the most important first."""
    verdicts = [
        *_files(report),
        *_records(report),
        *_encoding(report),
        *_duplicates(report),
        *_sources(report),
    ]
    for name, split in report.splits.items():
        if split.layout is None:
            continue  # said above
        shuffle = _shuffle(report, name, report.shuffle[name])
        if name in HOLDOUTS:
            verdicts.append(_holdout(name, split))
        if name not in HOLDOUTS or shuffle.level == "warning":  # the order of a holdout does not matter much
            verdicts.append(shuffle)
        verdicts += _packing(name, split)
    if report.kind == "dataset" and "train" in report.splits and not set(HOLDOUTS) & set(report.splits):
        verdicts.append(
            Verdict(
                "size",
                None,
                "warning",
                "there is no validation split: --set holdout.fraction=0.01 would draw one",
                "Prepare again with --holdout 0.01, or name the files of a split with --split-rule.",
            )
        )
    return verdicts


def _files(report: Report) -> Iterator[Verdict]:
    empty = [name for name, split in report.splits.items() if split.layout is None]
    for name in empty:
        yield Verdict(
            "files",
            name,
            "warning",
            f"no shard of {name} can be read",
            "Run `btlm-data verify`, which names the first damaged place, and restore the files.",
        )
    for name, same in report.identical_shards.items():
        yield Verdict(
            "files",
            name,
            "warning",
            f"{counted(len(same), 'shard')} of {name} have the same content ({', '.join(same[:3])})",
            "Look whether the source holds a file twice, and whether deduplication is switched off.",
        )


def _records(report: Report) -> Iterator[Verdict]:
    acquire = next((stage for stage in report.ledger if stage.stage == "acquire"), None)
    if acquire is None or not acquire.received.documents:
        return
    faults = {reason: amounts for reason, amounts in acquire.dropped.items() if reason not in NO_TEXT_REASONS}
    rejected = sum(amounts.documents for amounts in faults.values())
    share = rejected / acquire.received.documents
    counts = f"{counted(rejected, 'record')} of {number(acquire.received.documents)} could not be read"
    if share > MANY_REJECTED:
        commonest = next(iter(faults)).replace("_", " ")
        yield Verdict(
            "records",
            None,
            "warning",
            f"{counts} ({percent(share)}; most often: {commonest}): see rejects.jsonl",
            "Look at the examples below; a wrong --text-field or --encoding is the usual cause.",
        )
    else:
        yield Verdict("records", None, "good", counts if rejected else "every record could be read")


def _encoding(report: Report) -> Iterator[Verdict]:
    acquire = next((stage for stage in report.ledger if stage.stage == "acquire"), None)
    broken = (
        sum(acquire.dropped[reason].documents for reason in ENCODING_REASONS if reason in acquire.dropped)
        if acquire
        else 0
    )
    if broken:
        yield Verdict(
            "encoding",
            None,
            "warning",
            f"{counted(broken, 'record')} left out because of bytes that are not valid UTF-8",
            "If the files have another encoding, name it with --encoding; rejects.jsonl has file and line.",
        )


def _sources(report: Report) -> Iterator[Verdict]:
    listed = report.sources.get("train", [])
    if len(listed) > 1 and listed[0].shares.tokens > ONE_SOURCE:
        yield Verdict(
            "sources",
            "train",
            "warning",
            f"{percent(listed[0].shares.tokens)} of the train tokens are of one source, {listed[0].source or '(unnamed)'}",
            "If that is not intended, weigh the sources with --mix SOURCE=EPOCHS.",
        )


def _duplicates(report: Report) -> Iterator[Verdict]:
    dedupe = next((stage for stage in report.ledger if stage.stage == "dedupe"), None)
    if dedupe is None or not dedupe.received.documents:
        return
    if report.duplicates is None:
        advice = "Prepare again without --dedupe none, unless the corpus was deduplicated before."
        yield Verdict("duplicates", None, "warning", "duplicates were not looked for", advice)
        return
    dropped = sum(amounts.documents for amounts in dedupe.dropped.values())
    share = dropped / dedupe.received.documents
    counts = f"{counted(dropped, 'duplicate')} removed, {percent(share)} of the documents"
    if share > MANY_DUPLICATES:
        advice = (
            "Look at pairs: btlm-data inspect --duplicates, and --largest for the largest cluster; a template shared by many "
            "documents may join what is not alike. btlm-data dedupe-report says what other thresholds would remove."
        )
        yield Verdict("duplicates", None, "warning", f"{counts}, more than is usual", advice)
    else:
        yield Verdict("duplicates", None, "good", counts)


_SHUFFLE_ADVICE = "Prepare again with --shuffle samples, or let the trainer's reader shuffle."


def _shuffle(report: Report, name: str, shuffle: Shuffle) -> Verdict:
    asked = report.identity.shuffle if report.identity is not None else None
    order, neighbours = shuffle.documents, shuffle.neighbours
    continues = neighbours is not None and neighbours.measured_on >= FEW and neighbours.continued > _bound(
        neighbours.expected, neighbours.measured_on
    )  # fmt: skip
    ordered = (
        order is not None
        and order.measured_on >= FEW
        and abs(order.rank_correlation) > SIGMAS * order.standard_deviation
    )
    measured = max(order.measured_on if order else 0, neighbours.measured_on if neighbours else 0)
    if asked == "none":
        return Verdict("shuffle", name, "good", f"{name} is in source order, as the recipe says")
    if measured < FEW:
        return Verdict("shuffle", name, "unknown", f"{name} is too small to tell how well it is shuffled")
    if ordered and order is not None:
        return Verdict(
            "shuffle",
            name,
            "warning",
            f"{name} is not shuffled well: documents follow their source order "
            f"(rank correlation {order.rank_correlation:+.3f}, a shuffle gives 0 ± "
            f"{order.standard_deviation:.3f})",
            _SHUFFLE_ADVICE,
        )
    if continues and asked != "documents" and neighbours is not None:
        return Verdict(
            "shuffle",
            name,
            "warning",
            f"samples of {name} stand in stream order: {percent(neighbours.continued)} continue the one "
            "before, "
            f"by chance it would be {percent(neighbours.expected)}",
            _SHUFFLE_ADVICE,
        )
    if order is None and asked is None:
        return Verdict("shuffle", name, "good", f"neighbouring samples of {name} do not continue each other")
    return Verdict("shuffle", name, "good", f"{name} is shuffled well")


def _bound(expected: float, count: int) -> float:
    """What a share measured on `count` draws stays below, with few exceptions, if it is `expected`."""
    return expected + SIGMAS * math.sqrt(max(expected * (1 - expected), 1 / count) / count)


def _holdout(name: str, split: Split) -> Verdict:
    documents, tokens = split.documents, split.label_tokens or 0
    small = tokens < SMALL_HOLDOUT_TOKENS or (documents is not None and documents < SMALL_HOLDOUT_DOCUMENTS)
    size = f"{counted(documents, 'document')}, " if documents is not None else ""
    size += f"{number(tokens)} tokens"
    if small:
        text = f"{name} is too small to tell similar models apart: {size}"
        advice = "Take a larger share with --holdout, or accept that small differences cannot be seen."
        return Verdict("size", name, "warning", text, advice)
    return Verdict("size", name, "good", f"{name} is large enough to compare models: {size}")


def _packing(name: str, split: Split) -> Iterator[Verdict]:
    efficiency = split.packing_efficiency
    if efficiency is not None and efficiency < POOR_PACKING and split.samples > FEW:
        text = f"{percent(1 - efficiency)} of the positions of {name} are padding"
        advice = "A shorter --seq-len wastes less; in a small split, --tail drop leaves the last sample out."
        yield Verdict("packing", name, "warning", text, advice)
