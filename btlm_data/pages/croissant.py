"""croissant.json of a dataset: what its files are, for programs that read MLCommons' Croissant 1.0 (JSON-LD).

https://docs.mlcommons.org/croissant/docs/croissant-spec.html. Shards and tables are file objects with their
checksums; a record set for each split has the columns of documents.parquet, so that `mlcroissant` reads them.
Shards are HDF5, which the format has no record sets for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from btlm_data.formats import pages as seals
from btlm_data.formats.dataset import Dataset, StoredFile
from btlm_data.pages.card import title

# The context that the specification gives.
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{
        term: f"cr:{term}"
        for term in (
            "citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet", "format",
            "includes", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated",
            "replace", "samplingRate", "separator", "source", "subField", "transform",
        )
    },
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "isLiveDataset": "cr:isLiveDataset",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
}  # fmt: skip
_COLUMNS = {
    "stream_offset": "sc:Integer", "tokens": "sc:Integer", "file": "sc:Text", "line": "sc:Integer", "offset": "sc:Integer",
    "source": "sc:Text", "bytes": "sc:Integer", "chars": "sc:Integer",
}  # fmt: skip
_TYPES = {".h5": "application/x-hdf5", ".parquet": "application/x-parquet", ".jsonl": "application/jsonlines"}


def croissant(sets: Mapping[str, Dataset], checksum: str) -> bytes:
    """The file. Arguments as for `card.readme`."""
    value = {
        "description": "",
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": title(sets),
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "license": "unknown",
        "version": "1.0.0",
        "distribution": [entry for folder, dataset in sets.items() for entry in _files(folder, dataset)],
        "recordSet": [
            _records(folder, split) for folder, dataset in sets.items() for split in dataset.splits
        ],
    }
    text = json.dumps(value, indent=1, ensure_ascii=False)
    words = (
        "Token ids of text, packed into samples for pretraining a language model; prepared with btlm-data."
    )
    return seals.sealed_json_page(text, words, checksum)


def _files(folder: str, dataset: Dataset) -> Iterator[dict[str, Any]]:
    for file in dataset.stored():
        yield _file(f"{folder}/{file.name}" if folder else file.name, file)


def _file(path: str, file: StoredFile) -> dict[str, Any]:
    kind = next(
        (kind for suffix, kind in _TYPES.items() if path.endswith(suffix)), "application/octet-stream"
    )
    return {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "contentUrl": path,
        "contentSize": f"{file.bytes} B",
        "encodingFormat": kind,
        "sha256": file.sha256,
    }


def _records(folder: str, split: str) -> dict[str, Any]:
    name = f"{folder}-{split}" if folder else split
    path = f"{folder}/{split}/documents.parquet" if folder else f"{split}/documents.parquet"
    return {
        "@type": "cr:RecordSet",
        "@id": f"documents-{name}",
        "name": f"documents-{name}",
        "description": f"The documents of {name} in stream order.",
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"documents-{name}/{column}",
                "name": f"documents-{name}/{column}",
                "dataType": kind,
                "source": {"fileObject": {"@id": path}, "extract": {"column": column}},
            }
            for column, kind in _COLUMNS.items()
        ],
    }
