"""What is at a sample, a row or a range of tokens: the documents that the shards hold there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from btlm_data.errors import ConfigError
from btlm_data.formats.generations import folder_of
from btlm_data.lineage.answers import FoundDocument
from btlm_data.lineage.datasets import SetView
from btlm_data.lineage.described import found_document
from btlm_data.lineage.queries import Query
from btlm_data.lineage.split_view import Span, SplitView


def standing(sets: Sequence[SetView], query: Query, split: str, *, texts: bool) -> list[FoundDocument]:
    """What is at a sample, a row or a range of tokens of a split; of each set, where there are several. texts: with the
    text of each span.

    Raises ConfigError where there is no such sample, row or token.
    """
    answers = []
    for name in dict.fromkeys(of_set.name for of_set in sets):
        for of_set, view, spans in _spans_at(_views(sets, name, split), query):
            by_document: dict[int, list[Span]] = {}
            for span in spans:
                by_document.setdefault(span.document, []).append(span)
            described = view.table.described(sorted(by_document))
            documents = [
                found_document(of_set, view, d, texts=texts, spans=by_document[d["row"]]) for d in described
            ]
            answers += sorted(documents, key=lambda document: _first_position(document))
    return answers


def _views(sets: Sequence[SetView], name: str, split: str) -> list[tuple[SetView, SplitView]]:
    """The split that is asked, of every generation of a set that has it."""
    of_name = [of_set for of_set in sets if of_set.name == name]
    if not any(split in of_set.splits for of_set in of_name):
        split = next(iter(of_name[0].splits))
    return [(of_set, of_set.splits[split]) for of_set in of_name if split in of_set.splits]


def _spans_at(
    views: Sequence[tuple[SetView, SplitView]], query: Query
) -> Iterator[tuple[SetView, SplitView, list[Span]]]:
    """What is there, of each generation that has any of it. Samples and tokens are numbered through all."""
    last_set, last = views[-1]
    is_corpus, length = last.is_corpus, last.length
    if query.kind == "row":
        file, _, row = query.value.rpartition(":")
        *folders, shard = file.split("/")
        chosen = [
            (of_set, view)
            for of_set, view in views
            if any(entry.name == shard for entry in view.entry.files)
            and ("generation-" not in file or folder_of(of_set.generation) in folders)
        ]
        for of_set, view in chosen or views[-1:]:
            yield of_set, view, view.documents_in(view.row_in(shard, int(row)))
    elif query.kind == "sample" and not is_corpus:
        number = int(query.value)
        total = last_set.samples_before.get(last.name, 0) + last.num_rows
        if number >= total:
            raise ConfigError(
                f"There is no sample {number:,} in {last.name}: they go from 0 to {total - 1:,}. Name another."
            )
        for of_set, view in views:
            own = number - of_set.samples_before.get(view.name, 0)
            if 0 <= own < view.num_rows:
                yield of_set, view, view.documents_in(own)
    else:
        start, stop = (
            query.range
            if query.kind == "tokens"
            else (int(query.value) * length, (int(query.value) + 1) * length)
        )
        total = last_set.tokens_before.get(last.name, 0) + last.entry.stream_tokens
        if start >= total:
            raise ConfigError(
                f"The stream of {last.name} has {total:,} tokens, none from {start:,} on. Name others."
            )
        for of_set, view in views:
            before = of_set.tokens_before.get(view.name, 0)
            low, high = max(0, start - before), min(view.entry.stream_tokens, stop - before)
            if low < high:
                yield of_set, view, _spans_between(view, low, high)


def _spans_between(view: SplitView, start: int, stop: int) -> list[Span]:
    """The spans with a token or an EOS at stream positions [start, stop)."""
    if view.is_corpus:
        return view.corpus_documents(start, stop)
    return [
        span
        for extent in view.between(start, stop)
        for span in view.spans(extent)
        if extent.begin + span.tokens[0] < stop and start < extent.begin + span.tokens[1]
    ]


def _first_position(document: FoundDocument) -> tuple[int, int]:
    span = document.places[0]
    return (span.sample or 0, min(span.positions[0], span.labels[0]))
