"""Rows of a dataset's tables as answers give them: documents with their places, and those that are in no split."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from btlm_data.lineage import search
from btlm_data.lineage.answers import DroppedDocument, FoundDocument, FoundSpan
from btlm_data.lineage.datasets import SetView
from btlm_data.lineage.split_view import Extent, Span, SplitView

TEXT_CHARS = 20_000  # of one document's part in a sample, that are shown


def found_document(
    of_set: SetView,
    view: SplitView,
    document: Mapping[str, Any],
    *,
    texts: bool,
    passage: tuple[int, int] | None = None,
    spans: Sequence[Span] | None = None,
) -> FoundDocument:
    """A document of a split's table, with its spans (all, or those given). texts: with the text of each. passage: the tokens
    [first, last) of it that were asked for; only spans with any of them.
    """
    extent = Extent(document["row"], document["stream_offset"], document["tokens"])
    shown = view.spans(extent) if spans is None else spans
    before = of_set.tokens_before.get(view.name, 0)
    if passage is not None:
        shown = [span for span in shown if span.tokens[0] < passage[1] and passage[0] < span.tokens[1]]
    return FoundDocument(
        set=of_set.name,
        split=view.name,
        document=extent.row,
        id=search.document_name(document),
        file=document["file"],
        line=document["line"] + 1,
        offset=document["offset"],
        source=document["source"],
        bytes=document["bytes"],
        tokens=extent.tokens,
        hash=document["hash"].hex() if document.get("hash") is not None else None,
        fields=_fields(document),
        stream=(before + extent.begin, before + extent.end),
        places=[_found_span(of_set, view, span, texts) for span in shown],
        passage=passage,
        forgotten=bool(document.get("forgotten")),
        generation=of_set.generation,
    )


def _found_span(of_set: SetView, view: SplitView, span: Span, texts: bool) -> FoundSpan:
    shard, row = view.shard_of(span.row)
    text = None
    if texts:
        ids = view.inputs(span)[span.positions[0] : span.positions[1]]
        text = _text(of_set, ids)
    return FoundSpan(
        shard=os.fspath(view.path(shard)),
        row=row,
        sample=None if view.is_corpus else of_set.samples_before.get(view.name, 0) + span.row,
        positions=span.positions,
        labels=span.labels,
        tokens=span.tokens,
        text=text,
    )


def _text(of_set: SetView, ids: npt.NDArray[Any]) -> str:
    kept = ids[ids != of_set.manifest.tokenizer.eos_id]
    return of_set.tokenizer.decode(kept)[:TEXT_CHARS]


def _fields(document: Mapping[str, Any]) -> dict[str, str | None]:
    return {
        name.removeprefix("fields."): value for name, value in document.items() if name.startswith("fields.")
    }


def dropped_document(of_set: SetView, document: Mapping[str, Any]) -> DroppedDocument:
    """A document of dropped.parquet."""
    kept, detail = search.kept_instead(of_set, document) if document["stage"] == "dedupe" else ([], None)
    return DroppedDocument(
        set=of_set.name,
        split=document["split"],
        id=search.document_name(document),
        file=document["file"],
        line=document["line"] + 1,
        offset=document["offset"],
        source=document["source"],
        bytes=document["bytes"],
        stage=document["stage"],
        reason=document["reason"],
        detail=detail,
        kept=kept,
        fields=_fields(document),
        generation=of_set.generation,
    )


def rejected_record(of_set: SetView, record: Mapping[str, Any]) -> DroppedDocument:
    """A record of rejects.jsonl."""
    return DroppedDocument(
        set=of_set.name,
        split=None,
        id=f"{record['file']}#{record['offset']}",
        file=record["file"],
        line=record["line"],
        offset=record["offset"],
        source=None,
        bytes=record["bytes"],
        stage="acquire",
        reason=record["reason"],
        detail=record["detail"],
        kept=[],
        fields={},
        generation=of_set.generation,
    )
