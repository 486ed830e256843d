"""Answers for people: plain lines, the same on a terminal and in a file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from btlm_data.lineage.answers import Answer, DroppedDocument, FoundDocument, FoundSpan
from btlm_data.wording import counted

if TYPE_CHECKING:  # what changes a dataset is not loaded to show an answer
    from btlm_data.lineage.forget import Outcome

_MOST_SPANS = 20  # of one document, that are listed one by one
_MOST_STEPS = 8
_MOST_PLANNED = 20  # documents of a plan
_KINDS = {
    "id": "id",
    "url": "URL",
    "hash": "hash",
    "line": "line",
    "text": "passage",
    "any": "document",
    "ngrams": "n-grams of",
}


def lines(answer: Answer) -> Iterator[str]:
    """The lines of one answer."""
    asked = _KINDS.get(answer.query, answer.query)
    shown = answer.value if len(answer.value) <= 80 else f"{answer.value[:77]}..."
    yield f"{asked} {shown}"
    for document in answer.documents:
        yield from document_lines(document)
    for gone in answer.dropped:
        yield from _dropped(gone)
    if answer.note is not None:
        yield f"  {'note' if answer.documents or answer.dropped else 'not found'}: {answer.note}"


def count_line(answer: Answer) -> str:
    """One answer as numbers: documents, and places of a passage in them (of documents, places in samples)."""
    places = (
        len(answer.documents)
        if answer.query == "text"
        else sum(len(document.places) for document in answer.documents)
    )
    documents = {(d.generation, d.set, d.split, d.document) for d in answer.documents}
    shown = answer.value if len(answer.value) <= 80 else f"{answer.value[:77]}..."
    return f"{counted(len(documents), 'document')}, {counted(places, 'place')}: {_KINDS.get(answer.query, answer.query)} {shown}"


def document_lines(document: FoundDocument) -> Iterator[str]:
    """The lines of one document."""
    folder = f"{document.set}/{document.split}" if document.set else document.split
    folder = f"generation {document.generation}, {folder}" if document.generation > 1 else folder
    yield f"  {folder} document {document.document:,}: {document.file} line {document.line:,} ({document.source})"
    own = "" if document.id == f"{document.file}#{document.offset}" else f"id {document.id}, "
    yield f"    {own}{document.tokens:,} tokens, {document.bytes:,} bytes, stream {document.stream[0]:,} to {document.stream[1]:,}"
    for name, value in document.fields.items():
        if value is not None:
            yield f"    {name}: {value[:200]}"
    if document.hash is not None:
        yield f"    hash {document.hash}"
    if document.forgotten:
        yield "    forgotten: its tokens are masked"
    if document.passage is not None:
        yield f"    the passage is in its tokens {document.passage[0]:,} to {document.passage[1]:,}"
    if document.shared is not None:
        yield f"    in common: {document.shared}"
    if not document.places:
        yield "    in no sample: an unpadded tail leaves it out"
    for span in document.places[:_MOST_SPANS]:
        yield from _span_lines(span)
    if len(document.places) > _MOST_SPANS:
        yield f"    and {len(document.places) - _MOST_SPANS:,} more places (--json has all)"


def _span_lines(span: FoundSpan) -> Iterator[str]:
    shard = "/".join(span.shard.split("/")[-2:])
    if span.sample is None:
        where = f"tokens {span.positions[0]:,} to {span.positions[1]:,}"
    elif span.positions[0] == span.positions[1]:
        where = f"row {span.row:,} (sample {span.sample:,}), only as the label of position {span.labels[0]:,}"
    else:
        where = f"row {span.row:,} (sample {span.sample:,}), positions {span.positions[0]:,} to {span.positions[1]:,}"
    yield f"    {shard} {where}"
    if span.seen is not None:
        yield f"      {_steps(span)}"
    if span.text is not None:
        yield from (f"      | {line}" for line in span.text.splitlines() or [""])


def _steps(span: FoundSpan) -> str:
    seen = sorted(span.seen or [], key=lambda sighting: (not sighting.done, sighting.step))
    if not seen:
        return "at no step of the run"
    parts = []
    for done, steps in groupby(seen, lambda sighting: sighting.done):
        chosen = list(steps)
        named = ", ".join(
            f"{sighting.step:,} (rank {sighting.rank}, place {sighting.place})"
            for sighting in chosen[:_MOST_STEPS]
        )
        more = f" and {len(chosen) - _MOST_STEPS:,} more" if len(chosen) > _MOST_STEPS else ""
        parts.append(
            f"{'seen at' if done else 'to be seen at'} step{'s' if len(chosen) > 1 else ''} {named}{more}"
        )
    return "; ".join(parts)


def _dropped(gone: DroppedDocument) -> Iterator[str]:
    folder = f"{gone.set}: " if gone.set else ""
    folder = f"generation {gone.generation}, {folder}" if gone.generation > 1 else folder
    yield f"  {folder}in no split: {gone.file} line {gone.line:,}, {gone.bytes:,} bytes"
    detail = f" ({gone.detail})" if gone.detail else ""
    yield f"    left at {gone.stage}: {gone.reason}{detail}"
    for name in gone.kept:
        yield f"    stays in its place: {name}"


def planned_lines(outcome: Outcome) -> Iterator[str]:
    """What `forget` would do."""
    for question in outcome.nothing:
        yield f"not found: {question}"
    for question in outcome.done:
        yield f"forgotten before: {question}"
    for document in outcome.named[:_MOST_PLANNED]:
        where = f"{document.set} {document.split}".strip() + (
            f", generation {document.generation}" if document.generation > 1 else ""
        )
        yield f"{document.id}: {where}, document {document.document:,}, {counted(document.tokens, 'token')}, {document.file} line {document.line:,}"
    if len(outcome.named) > _MOST_PLANNED:
        yield f"... and {len(outcome.named) - _MOST_PLANNED:,} more (--json lists all)"
    for seen in outcome.seen_by:
        yield f"{seen.run} has seen them at {counted(seen.steps_seen, 'step')}; steps to come that would: {seen.steps_to_come:,}."
    tokens = sum(document.tokens for document in outcome.named)
    done = "masked" if outcome.how == "mask" else "removed"
    yield f"{counted(outcome.documents, 'document')} with {counted(tokens, 'token')} would be {done}. Nothing was changed."


def forgotten_lines(outcome: Outcome, path: Path) -> Iterator[str]:
    """What `forget` did, and what it could not reach."""
    for question in outcome.nothing:
        yield f"not found: {question}"
    for question in outcome.done:
        yield f"forgotten before: {question}"
    if outcome.certificate is None:
        return
    if outcome.how == "mask":
        places = f"{counted(outcome.masked, 'label position')} in {counted(outcome.shards, 'shard')}"
        yield f"Masked {counted(outcome.documents, 'document')}: {places}."
    else:
        changed = counted(outcome.shards, "shard")
        yield f"Removed {counted(outcome.documents, 'document')}; written again or gone: {changed}."
    for seen in outcome.seen_by:
        first = f", first at step {seen.first_steps[0]:,}" if seen.first_steps else ""
        to_come = (
            f"{seen.steps_to_come:,} steps to come meet the masked ones"
            if outcome.how == "mask"
            else "it cannot continue on this dataset, whose samples are others now"
        )
        yield f"{seen.run} had seen them at {counted(seen.steps_seen, 'step')}{first}; {to_come}."
    if outcome.indexes:
        yield f"The index is removed. Make it again with `btlm-data index {path}`."
    if outcome.unfinished is not None:
        yield f"{outcome.unfinished}, which an unfinished add left, is removed. Add its source again with `btlm-data add {path}`."
    yield "Their text is still in:"
    yield from (f"  {location}" for location in outcome.still_held)
    yield f"Certificate: {outcome.certificate}. Next: `btlm-data verify {path}`, and sign it again if it was signed."
