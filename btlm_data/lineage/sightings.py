"""Which steps of a training run saw what questions were answered with."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from btlm_data.lineage.answers import Answer, FoundSpan, Sighting
from btlm_data.lineage.datasets import SetView
from btlm_data.lineage.runs import Run


def with_sightings(answers: list[Answer], sets: Sequence[SetView], run: Run) -> list[Answer]:
    """Answers of some sets, each span with the steps of a run that saw it or will."""
    hashes = {
        os.path.abspath(view.path(number)): file.sha256
        for of_set in sets
        for view in of_set.splits.values()
        for number, file in enumerate(view.entry.files)
    }
    asked: dict[tuple[str, str | None, int, int], int] = {}

    def key(span: FoundSpan) -> tuple[str, str | None, int, int]:
        shard = os.path.abspath(span.shard)
        first, last = (span.row, span.row + 1) if span.sample is not None else span.positions
        return shard, hashes.get(shard), first, last

    spans = [span for answer in answers for document in answer.documents for span in document.places]
    for span in spans:
        asked.setdefault(key(span), len(asked))
    seen: list[list[Sighting]] = [[] for _ in asked]
    done = run.steps_done
    for sighting in run.seen(list(asked)):
        seen[sighting.query].append(
            Sighting(sighting.step, sighting.rank, sighting.batch_index, sighting.epoch, sighting.step < done)
        )
    return [
        msgspec.structs.replace(
            answer,
            documents=[
                msgspec.structs.replace(
                    document,
                    places=[
                        msgspec.structs.replace(span, seen=seen[asked[key(span)]]) for span in document.places
                    ],
                )
                for document in answer.documents
            ],
        )
        for answer in answers
    ]
