"""The corpora that have a name: where each lives, how its files are laid out, what to take instead if it is
gone.

An entry is data, not code. More entries, or other places for the same names, come from `--sources-file`
(YAML, see docs/sources.md); an entry there replaces a built-in one of the same name.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from btlm_data.errors import ConfigError
from btlm_data.recipe import yaml_file
from btlm_data.recipe.validation import explain
from btlm_data.sources.names import shown
from btlm_data.splits import Split

_Place = Annotated[str, Field(min_length=1, max_length=4096)]


class Corpus(BaseModel):
    """One named corpus.

    at: `hf://datasets/ORG/NAME`, or any other URL or folder that --source takes. splits: glob patterns below
    `at`, by split; `{chunk}` stands for the number of a part that --chunks selects. source_names: glob
    pattern -> source name, where a file's place decides it (first match). mirrors: other places with the same
    files, tried in order. stand_ins: smaller corpora to name when this one cannot be downloaded. url_lists:
    files below `at` that hold the URLs of the data, one a line; names are taken relative to `url_base`.
    checksums: files below `url_base` in `sha256sum`'s form.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: _Place
    revision: str | None = None
    splits: dict[Split, tuple[_Place, ...]] = Field(min_length=1)
    chunks: dict[Split, int] = Field(
        default_factory=dict, description="number of chunks, for patterns that hold {chunk}"
    )
    text_field: str = "text"
    source_field: str | None = None
    source_names: dict[str, str] = Field(default_factory=dict)
    mirrors: tuple[_Place, ...] = ()
    stand_ins: tuple[str, ...] = ()
    url_lists: tuple[_Place, ...] = ()
    url_base: str | None = None
    checksums: tuple[_Place, ...] = ()
    license: str = Field(
        "unknown: read the card of the corpus", description="a note for people, kept in dataset.json"
    )
    note: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Corpus:
        if self.url_lists and not self.url_base:
            raise ValueError("url_lists needs url_base, the common beginning of the URLs")
        for split, patterns in self.splits.items():
            if any("{chunk}" in pattern for pattern in patterns) and split not in self.chunks:
                raise ValueError(f"splits.{split} holds {{chunk}}: chunks.{split} must give their number")
        return self


REDPAJAMA_NAMES = {
    "arxiv/**": "RedPajamaArXiv",
    "book/**": "RedPajamaBook",
    "c4/**": "RedPajamaC4",
    "common_crawl/**": "RedPajamaCommonCrawl",
    "github/**": "RedPajamaGithub",
    "stackexchange/**": "RedPajamaStackExchange",
    "wikipedia/**": "RedPajamaWikipedia",
}

BUILT_IN: dict[str, Corpus] = {
    "slimpajama": Corpus(
        at="hf://datasets/cerebras/SlimPajama-627B",
        splits={
            "train": ("train/chunk{chunk}/*.jsonl.zst",),
            "validation": ("validation/chunk{chunk}/*.jsonl.zst",),
            "test": ("test/chunk{chunk}/*.jsonl.zst",),
        },
        chunks={"train": 10, "validation": 5, "test": 5},
        source_field="meta.redpajama_set_name",
        stand_ins=("slimpajama-6b", "hf://datasets/venketh/SlimPajama-62B"),
        license="Published as Apache-2.0 by Cerebras; the card no longer says so. The Books part derives from RedPajama's, whose "
        "original was withdrawn: leave it out with --exclude-source RedPajamaBook if in doubt.",
        note="59,166 files, 895 GB compressed, 627 billion tokens",
    ),
    "slimpajama-6b": Corpus(
        at="hf://datasets/DKYoon/SlimPajama-6B",
        splits={
            "train": ("data/train-*.parquet",),
            "validation": ("data/validation-*.parquet",),
            "test": ("data/test-*.parquet",),
        },
        source_field="meta.redpajama_set_name",
        stand_ins=("sample",),
        license="As SlimPajama-627B, of which it is a sample of about one hundredth.",
        note="48 train files, 14 GB, 5.5 million documents",
    ),
    "redpajama": Corpus(
        at="hf://datasets/togethercomputer/RedPajama-Data-1T",
        splits={"train": tuple(pattern.replace("**", "**/*.jsonl*") for pattern in REDPAJAMA_NAMES)},
        source_names=REDPAJAMA_NAMES,
        url_lists=tuple(f"urls/{name.split('/')[0]}.txt" for name in REDPAJAMA_NAMES),
        url_base="https://data.together.xyz/redpajama-data-1T/v1.0.0/",
        checksums=tuple(f"sha256/{name.split('/')[0]}_SHA256SUMS.txt" for name in REDPAJAMA_NAMES),
        stand_ins=("slimpajama", "slimpajama-6b", "hf://datasets/togethercomputer/RedPajama-Data-1T-Sample"),
        license="Each part has its own licence (Common Crawl terms, C4 ODC-BY, GitHub MIT/BSD/Apache, arXiv terms, Wikipedia and "
        "StackExchange CC BY-SA); the book part has been withdrawn by its publisher.",
        note="2,084 files, about 5 TB as stored, 1.2 trillion tokens",
    ),
}


def corpora(extra: Path | None = None) -> dict[str, Corpus]:
    """The built-in sources and those of a --sources-file. Raises ConfigError naming the file, the entry and
    what is wrong with it.
    """
    if extra is None:
        return BUILT_IN
    file = yaml_file.read(extra, "sources file", aliases=True)
    named: dict[str, Corpus] = {}
    for name, entry in file.tree.items():
        try:
            named[name] = Corpus.model_validate(entry)
        except ValidationError as error:

            def where(path: yaml_file.KeyPath, name: str = name) -> str:
                return f"The sources file {file.where((name, *path))}"

            raise ConfigError(explain(error, Corpus, where)) from None
    return BUILT_IN | named


def suggestion(name: str, known: dict[str, Corpus]) -> str:
    """A sentence that names what `name` may have been meant to be."""
    near = difflib.get_close_matches(name, [*known, "sample"], 1)
    listed = ", ".join(sorted([*known, "sample"]))
    meant = f"Did you mean {near[0]}? " if near else ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        meant = f"If it is a data set on the Hugging Face hub, write --source hf://datasets/{name}. "
    if (slash := re.match(r"([a-z][a-z0-9+.-]+):/(?!/)", name)) is not None:
        meant = f"A URL has two slashes: {shown(f'{slash[1]}://{name[slash.end() :]}')}. "
    return f"{meant}Registered sources are {listed}; or name a file, a folder or a URL."
