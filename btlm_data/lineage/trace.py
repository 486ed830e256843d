"""Answer questions of a finished dataset: what is in a sample, and where documents went.

All questions of one call share their passes over the tables and the shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from btlm_data.errors import ConfigError, DataError
from btlm_data.formats import forgotten, generations
from btlm_data.formats.arrow import leave_pandas_out
from btlm_data.formats.dataset import DOCUMENTS, DROPPED
from btlm_data.lineage import search
from btlm_data.lineage.answers import Answer, DroppedDocument, FoundDocument
from btlm_data.lineage.datasets import SetView, open_dataset
from btlm_data.lineage.described import dropped_document, found_document, rejected_record
from btlm_data.lineage.key_index import groups_by_key
from btlm_data.lineage.queries import Query
from btlm_data.lineage.runs import Run, open_run
from btlm_data.lineage.sightings import with_sightings
from btlm_data.lineage.split_view import Span, SplitView
from btlm_data.lineage.standing import standing

if TYPE_CHECKING:
    from btlm_data.cleaning.evaluation_ngrams import EvalNgrams


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
                answers.append(
                    Answer(
                        query.kind,
                        query.value,
                        standing(self.sets, query, self.split or "train", texts=self.texts),
                        [],
                    )
                )
        return answers if self.run is None else with_sightings(answers, self.sets, self.run)

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
                    described = found_document(of_set, view, document, texts=self.texts)
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
                        gone = dropped_document(of_set, document)
                        for number in answered:
                            dropped[number].append(gone)
            for record, answered in search.rejected(of_set.root, wanted):
                for number in answered:
                    dropped[number].append(rejected_record(of_set, record))

    def _find_passages(
        self,
        of_set: SetView,
        queries: Sequence[Query],
        numbers: Sequence[int],
        documents: list[list[FoundDocument]],
    ) -> None:
        from btlm_data.lineage.passages import find_passages, passage_of, why_read_whole

        passages = [passage_of(queries[number].value, of_set) for number in numbers]
        for number, passage in zip(numbers, passages, strict=True):
            if (reason := why_read_whole(of_set, passage)) is not None:
                self.notes[queries[number]] = reason
        for name, hits in find_passages(of_set, list(self.splits(of_set)), passages).items():
            view = of_set.splits[name]
            rows = sorted({hit.document.row for hit in hits})
            described = {document["row"]: document for document in view.table.described(rows)}
            for hit in hits:
                located = found_document(
                    of_set, view, described[hit.document.row], texts=self.texts, passage=hit.tokens
                )
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
                located = found_document(of_set, view, document, texts=self.texts)
                words = f"{each.ngrams:,} of its 13-word n-grams, the first: {each.words}"
                documents.append(msgspec.structs.replace(located, shared=words))
        return documents

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


def batch(run: Path, step: int, *, texts: bool = True) -> list[tuple[int, int, FoundDocument]]:
    """(rank, index in the batch, document) of everything a run's step took; the shards must be where they
    were.

    Raises DataError if they are in no prepared dataset.
    """
    opened = open_run(run)
    taken = []
    datasets: dict[Path, SetView] = {}
    for sample in opened.batch(step):
        shard = Path(sample.shard)
        root = shard.parent.parent
        if root not in datasets:
            whole = generations.whole_of(root) or generations.whole_of(root.parent) or root
            sets = open_dataset(whole)
            datasets[root] = next((of_set for of_set in sets if of_set.root == root), sets[0])
        of_set = datasets[root]
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
            shown = found_document(of_set, view, document, texts=texts, spans=spans[document["row"]])
            taken.append((sample.rank, sample.batch_index, shown))
    return taken
