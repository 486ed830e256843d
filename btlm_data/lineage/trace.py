"""Answer questions of a finished dataset: what is in a sample, and where documents went.

All questions of one call share their passes over the tables and the shards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from btlm_data.errors import ConfigError, DataError
from btlm_data.formats import forgotten, generations
from btlm_data.formats.arrow import leave_pandas_out
from btlm_data.formats.dataset import DOCUMENTS, DROPPED
from btlm_data.formats.generations import folder_of
from btlm_data.lineage import search
from btlm_data.lineage.datasets import SetView, open_dataset
from btlm_data.lineage.key_index import groups_by_key
from btlm_data.lineage.passages import find_passages, passage_of, why_read_whole
from btlm_data.lineage.queries import Query
from btlm_data.lineage.runs import Run, open_run
from btlm_data.lineage.split_view import Extent, Span, SplitView

if TYPE_CHECKING:
    from btlm_data.cleaning.evaluation_ngrams import EvalNgrams

TEXT_CHARS = 20_000  # of one document's part in a sample, that are shown


class Sighting(msgspec.Struct, frozen=True):
    """A step that took a sample. step: from 0; rank: whose part of the batch; place: in the batch; done:
    whether the newest checkpoint includes it.
    """

    step: int
    rank: int
    place: int
    epoch: int
    done: bool


class FoundSpan(msgspec.Struct, frozen=True):
    """A span of a document in the shards. sample: the row of the split, counted through all generations, None
    in a corpus; row: in the shard (corpus: its first token).

    positions, labels: of the sample (corpus: tokens of the shard) where its tokens or EOS are inputs, and
    labels. tokens: of the document. text: where requested. seen: by the run.
    """

    shard: str
    row: int
    sample: int | None
    positions: tuple[int, int]
    labels: tuple[int, int]
    tokens: tuple[int, int]
    text: str | None = None
    seen: list[Sighting] | None = None


class FoundDocument(msgspec.Struct, frozen=True):
    """A document of a split. document: its row in documents.parquet (of its generation); line: from 1; stream:
    its first position and one past its EOS, counted through all generations; passage: the tokens [first, last)
    of it that hold the passage requested; shared: what it has in common with a file, in words.
    """

    set: str
    split: str
    document: int
    id: str
    file: str
    line: int
    offset: int
    source: str
    bytes: int
    tokens: int
    hash: str | None
    fields: dict[str, str | None]
    stream: tuple[int, int]
    places: list[FoundSpan]
    passage: tuple[int, int] | None = None
    forgotten: bool = False
    generation: int = 1
    shared: str | None = None


class DroppedDocument(msgspec.Struct, frozen=True):
    """A document (or an unreadable record) that is in no split. stage, reason: as the ledger names them;
    detail: what is known beside. kept: FILE#OFFSET of the documents that stay in its place.
    """

    set: str
    split: str | None
    id: str
    file: str
    line: int
    offset: int
    source: str | None
    bytes: int
    stage: str
    reason: str
    detail: str | None
    kept: list[str]
    fields: dict[str, str | None]
    generation: int = 1


class Answer(msgspec.Struct, frozen=True):
    """What one question gave. note: where it gave nothing, or not all, why."""

    query: str
    value: str
    documents: list[FoundDocument]
    dropped: list[DroppedDocument]
    note: str | None = None


def trace(
    path: Path,
    queries: Sequence[Query],
    *,
    split: str | None = None,
    run: Path | None = None,
    texts: bool = False,
) -> list[Answer]:
    """Answer questions of the dataset at `path`, in order.

    split: ask of this split only (samples, rows and tokens: train by default). run: a training run's folder:
    also say which steps saw the samples. texts: give the text of each span. Raises BtlmError for everything
    that a user can correct.
    """
    leave_pandas_out()  # a second of imports, which nothing here needs
    sets = open_dataset(path)
    opened = open_run(run) if run is not None else None
    answers = _Tracer(sets, opened, split, texts)
    return answers.all(queries)


class _Tracer:
    def __init__(self, sets: Sequence[SetView], run: Run | None, split: str | None, texts: bool) -> None:
        self.sets, self.run, self.split, self.texts = sets, run, split, texts
        self.notes: dict[Query, str] = {}
        self.ngrams: dict[str, EvalNgrams] = {}
        if split is not None and not any(split in of_set.splits for of_set in sets):
            known = ", ".join(dict.fromkeys(name for of_set in sets for name in of_set.splits))
            raise ConfigError(f"There is no split {split!r}. The dataset has {known}.")

    def splits(self, of_set: SetView) -> dict[str, SplitView]:
        """Those that are asked."""
        return {name: view for name, view in of_set.splits.items() if self.split in (None, name)}

    def all(self, queries: Sequence[Query]) -> list[Answer]:
        """Every answer."""
        about = [query for query in queries if query.is_of_documents]
        numbers = {
            number: k for k, number in enumerate(n for n, q in enumerate(queries) if q.is_of_documents)
        }
        documents: list[list[FoundDocument]] = [[] for _ in about]
        dropped: list[list[DroppedDocument]] = [[] for _ in about]
        if about:
            self._find(about, documents, dropped)
        answers = []
        for number, query in enumerate(queries):
            if query.is_of_documents:
                kept, removed = documents[numbers[number]], dropped[numbers[number]]
                note = self.notes.get(query)
                if not kept and not removed:
                    note = "; ".join(filter(None, [self._nothing(query), note]))
                answers.append(Answer(query.kind, query.value, kept, removed, note))
            else:
                answers.append(Answer(query.kind, query.value, self._standing(query), []))
        return self._with_sightings(answers)

    # Documents ----------------------------------------------------------------------------------------------

    def _find(
        self,
        queries: Sequence[Query],
        documents: list[list[FoundDocument]],
        dropped: list[list[DroppedDocument]],
    ) -> None:
        wanted = search.Wanted.of(queries)
        passages = [number for number, query in enumerate(queries) if query.kind == "text"]
        for of_set in self.sets:
            groups_of = groups_by_key(of_set)
            for name, view in self.splits(of_set).items():
                matches = search.in_table(view.table, wanted, f"{name}/{DOCUMENTS}", groups_of)
                for document, answered in matches:
                    described = self.document(of_set, view, document)
                    for number in answered:
                        documents[number].append(described)
            if passages:
                self._find_passages(of_set, queries, passages, documents)
            for number, query in enumerate(queries):
                if query.kind == "ngrams":
                    documents[number] += self._sharing(of_set, query.value)
            if of_set.dropped is not None:
                for document, answered in search.in_table(of_set.dropped, wanted, DROPPED, groups_of):
                    if self.split in (None, document["split"]):
                        gone = _dropped(of_set, document)
                        for number in answered:
                            dropped[number].append(gone)
            for record, answered in search.rejected(of_set.root, wanted):
                for number in answered:
                    dropped[number].append(_rejected(of_set, record))

    def _find_passages(
        self,
        of_set: SetView,
        queries: Sequence[Query],
        numbers: Sequence[int],
        documents: list[list[FoundDocument]],
    ) -> None:
        passages = [passage_of(queries[number].value, of_set) for number in numbers]
        for number, passage in zip(numbers, passages, strict=True):
            if (reason := why_read_whole(of_set, passage)) is not None:
                self.notes[queries[number]] = reason
        for name, hits in find_passages(of_set, list(self.splits(of_set)), passages).items():
            view = of_set.splits[name]
            rows = sorted({hit.document.row for hit in hits})
            described = {document["row"]: document for document in view.table.described(rows)}
            for hit in hits:
                located = self.document(of_set, view, described[hit.document.row], hit.tokens)
                documents[numbers[hit.query]].append(located)

    def _sharing(self, of_set: SetView, file: str) -> list[FoundDocument]:
        """Documents that have 13 words in a row in common with a file."""
        from btlm_data.lineage import shared_ngrams

        if file not in self.ngrams:
            self.ngrams[file] = shared_ngrams.read_file(Path(file))
        documents = []
        for name, those in shared_ngrams.sharing(
            of_set, list(self.splits(of_set)), self.ngrams[file]
        ).items():
            view = of_set.splits[name]
            described = view.table.described([each.row for each in those])
            for each, document in zip(those, described, strict=True):
                located = self.document(of_set, view, document)
                words = f"{each.ngrams:,} of its 13-word n-grams, the first: {each.words}"
                documents.append(msgspec.structs.replace(located, shared=words))
        return documents

    def document(
        self,
        of_set: SetView,
        view: SplitView,
        document: Mapping[str, Any],
        passage: tuple[int, int] | None = None,
        spans: Sequence[Span] | None = None,
    ) -> FoundDocument:
        """A document of a table, with its spans (all, or those given)."""
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
            places=[self._found_span(of_set, view, span) for span in shown],
            passage=passage,
            forgotten=bool(document.get("forgotten")),
            generation=of_set.generation,
        )

    def _found_span(self, of_set: SetView, view: SplitView, span: Span) -> FoundSpan:
        shard, row = view.shard_of(span.row)
        text = None
        if self.texts:
            ids = view.inputs(span)[span.positions[0] : span.positions[1]]
            text = self._text(of_set, ids)
        return FoundSpan(
            shard=os.fspath(view.path(shard)),
            row=row,
            sample=None if view.is_corpus else of_set.samples_before.get(view.name, 0) + span.row,
            positions=span.positions,
            labels=span.labels,
            tokens=span.tokens,
            text=text,
        )

    def _text(self, of_set: SetView, ids: Any) -> str:
        kept = ids[ids != of_set.manifest.tokenizer.eos_id]
        return of_set.tokenizer.decode(kept)[:TEXT_CHARS]

    def _nothing(self, query: Query) -> str:
        asked, others = forgotten.question(query.kind, query.value), 0
        for of_set in self.sets:
            for certificate in forgotten.read(of_set.root).certificates:
                if asked in certificate.asked or (
                    query.kind == "hash" and any(each.hash == query.value for each in certificate.documents)
                ):
                    return (
                        f"it was forgotten: {forgotten.FILE_NAME} has the certificate of {certificate.when}"
                    )
                others += len(certificate.documents)
        where = " or ".join(dict.fromkeys(of_set.name or "the dataset" for of_set in self.sets))
        if query.kind == "ngrams":
            return f"no document of {where} has 13 words in a row in common with it"
        if query.kind == "text":
            return f"no document of {where} has this passage; texts of dropped documents are not kept"
        if query.kind in ("id", "url") and not self._has_column(query.kind):
            kept = "source.id_field" if query.kind == "id" else "source.keep_fields: [url]"
            return f"the dataset keeps no {query.kind} of its documents; prepare it with {kept}"
        nowhere = "it is in no split, among no dropped documents, and in no rejects"
        if others:
            named = "document was" if others == 1 else "documents were"
            return (
                f"{nowhere} of {where}, from which {others:,} {named} forgotten: {forgotten.FILE_NAME} names those "
                "by the hash of their text alone (`--hash` asks for it)"
            )
        return f"{where} was not made from it: {nowhere}"

    def _has_column(self, kind: str) -> bool:
        columns = [
            name for of_set in self.sets for view in of_set.splits.values() for name in view.table.columns
        ]
        return "id" in columns if kind == "id" else bool(search.url_columns(columns))

    # Samples ------------------------------------------------------------------------------------------------

    def _standing(self, query: Query) -> list[FoundDocument]:
        """What is at a sample, a row or a range of tokens; of each set, where there are several."""
        answers = []
        for name in dict.fromkeys(of_set.name for of_set in self.sets):
            for of_set, view, spans in self._spans_at(self._views(name), query):
                by_document: dict[int, list[Span]] = {}
                for span in spans:
                    by_document.setdefault(span.document, []).append(span)
                described = view.table.described(sorted(by_document))
                documents = [self.document(of_set, view, d, spans=by_document[d["row"]]) for d in described]
                answers += sorted(documents, key=lambda document: _first_position(document))
        return answers

    def _views(self, name: str) -> list[tuple[SetView, SplitView]]:
        """The split that is asked, of every generation of a set that has it."""
        of_name = [of_set for of_set in self.sets if of_set.name == name]
        split = self.split or "train"
        if not any(split in of_set.splits for of_set in of_name):
            split = next(iter(of_name[0].splits))
        return [(of_set, of_set.splits[split]) for of_set in of_name if split in of_set.splits]

    def _spans_at(
        self, views: Sequence[tuple[SetView, SplitView]], query: Query
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

    # Runs ---------------------------------------------------------------------------------------------------

    def _with_sightings(self, answers: list[Answer]) -> list[Answer]:
        if self.run is None:
            return answers
        hashes = {
            os.path.abspath(view.path(number)): file.sha256
            for of_set in self.sets
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
        done = self.run.steps_done
        for sighting in self.run.seen(list(asked)):
            seen[sighting.query].append(
                Sighting(
                    sighting.step, sighting.rank, sighting.batch_index, sighting.epoch, sighting.step < done
                )
            )
        return [
            msgspec.structs.replace(
                answer,
                documents=[
                    msgspec.structs.replace(
                        document,
                        places=[
                            msgspec.structs.replace(span, seen=seen[asked[key(span)]])
                            for span in document.places
                        ],
                    )
                    for document in answer.documents
                ],
            )
            for answer in answers
        ]


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


def _fields(document: Mapping[str, Any]) -> dict[str, str | None]:
    return {
        name.removeprefix("fields."): value for name, value in document.items() if name.startswith("fields.")
    }


def _dropped(of_set: SetView, document: Mapping[str, Any]) -> DroppedDocument:
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


def _rejected(of_set: SetView, record: Mapping[str, Any]) -> DroppedDocument:
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


def batch(run: Path, step: int, *, texts: bool = True) -> list[tuple[int, int, FoundDocument]]:
    """(rank, index in the batch, document) of everything a run's step took; the shards must be where they
    were.

    Raises DataError if they are in no prepared dataset.
    """
    opened = open_run(run)
    taken = []
    tracers: dict[Path, tuple[_Tracer, SetView]] = {}
    for sample in opened.batch(step):
        shard = Path(sample.shard)
        root = shard.parent.parent
        if root not in tracers:
            whole = generations.whole_of(root) or generations.whole_of(root.parent) or root
            sets = open_dataset(whole)
            own = next((of_set for of_set in sets if of_set.root == root), sets[0])
            tracers[root] = (_Tracer(sets, None, None, texts), own)
        tracer, of_set = tracers[root]
        view = of_set.splits.get(shard.parent.name)
        if view is None:
            raise DataError(f"{shard} is in no split of {root}. Restore the dataset where the run read it.")
        row = view.row_in(shard.name, sample.row)
        spans: dict[int, list[Span]] = {}
        for span in (
            view.corpus_documents(row, row + sample.length) if view.is_corpus else view.documents_in(row)
        ):
            spans.setdefault(span.document, []).append(span)
        for document in view.table.described(sorted(spans)):
            shown = tracer.document(of_set, view, document, spans=spans[document["row"]])
            taken.append((sample.rank, sample.batch_index, shown))
    return taken
