"""A corpus whose data set on the hub only names its files by URL, one a line, in some text files (RedPajama's
way).
"""

from __future__ import annotations

import concurrent.futures
import logging
from collections import Counter
from collections.abc import Callable
from urllib.parse import unquote

from btlm_data.errors import SourceUnavailable
from btlm_data.records.formats import classify
from btlm_data.sources import hub, web
from btlm_data.sources.base import Access, Entry, SchemeListing
from btlm_data.sources.corpora import Corpus
from btlm_data.sources.globs import matcher
from btlm_data.sources.hub_errors import refuse
from btlm_data.sources.names import is_safe_name, shown

logger = logging.getLogger(__name__)
_HEADS_AT_ONCE = 8


def list_url_lists(
    corpus: Corpus,
    revision: str | None,
    access: Access,
    excluded_sources: tuple[str, ...],
    files_per_split: int | None,
    split_of: Callable[[str], str | None],
) -> SchemeListing:
    """The files that the lists name. split_of: a name's split, None for what is not wanted.

    Lists of excluded sources are not even requested, and only the files that `--files` leaves are looked up.
    Raises SourceUnavailable naming the parts that are gone, so that none goes missing in silence.
    """
    pinned = hub.commit_of(corpus.at, revision, access)
    excluded = [matcher(pattern) for pattern, name in corpus.source_names.items() if name in excluded_sources]
    addresses: dict[str, str] = {}
    gone: list[str] = []
    for path in corpus.url_lists:
        probe = path.rsplit("/", 1)[-1].rsplit(".", 1)[0] + "/x.jsonl"
        if any(matches(probe) for matches in excluded):
            continue
        try:
            text = hub.read_text_file(pinned, path, access)
        except SourceUnavailable as error:
            gone.append(f"{path} ({str(error).split('. ')[0]})")
            continue
        addresses |= _named(text, path, corpus)
    if gone:
        refuse(
            pinned.repository,
            f"these parts are gone: {', '.join(gone)}; leave them out with --exclude-source, or give a folder that has them",
        )
    taken: Counter[str] = Counter()
    wanted: list[str] = []
    for name in sorted(addresses):
        split = split_of(name)
        if split is None or classify(name) is None or any(matches(name) for matches in excluded):
            continue
        taken[split] += 1
        if files_per_split is None or taken[split] <= files_per_split:
            wanted.append(name)
    if not wanted:
        refuse(pinned.repository, "its lists of URLs name no file that is wanted")
    sums = _checksums(corpus, access)
    first = web.head_of(addresses[wanted[0]], wanted[0], access, sums.get(wanted[0]))
    with concurrent.futures.ThreadPoolExecutor(_HEADS_AT_ONCE) as pool:
        heads = [
            pool.submit(web.head_of, addresses[name], name, access, sums.get(name), first=False)
            for name in wanted[1:]
        ]
        try:
            entries: list[Entry] = [first, *(head.result() for head in heads)]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    provenance = {
        "kind": "url list",
        "repository": pinned.repository,
        "revision": pinned.revision,
        "url_base": corpus.url_base,
        "checksums": sum(entry.sha256 is not None for entry in entries),
    }
    secrets = {entry.url: addresses[entry.name] for entry in entries if entry.url != addresses[entry.name]}
    return SchemeListing(entries, provenance, secrets=secrets)


def _named(text: str, path: str, corpus: Corpus) -> dict[str, str]:
    """Name -> URL of one list. A URL that points elsewhere is refused: the list is from a server, not from
    the user.
    """
    assert corpus.url_base is not None
    addresses: dict[str, str] = {}
    for line in text.splitlines():
        address = line.strip()
        if not address:
            continue
        if not address.startswith(corpus.url_base):
            refuse(corpus.at, f"{path} names {shown(address)!r}, which does not begin with {corpus.url_base}")
        name = unquote(address[len(corpus.url_base) :].partition("?")[0])
        if not is_safe_name(name):
            refuse(
                corpus.at,
                f"{path} names {shown(address)!r}, which is no plain address below {corpus.url_base}",
            )
        addresses[name] = address
    return addresses


def _checksums(corpus: Corpus, access: Access) -> dict[str, str]:
    """Name -> SHA-256 from the published lists; a list that cannot be read leaves its files to their size and
    ETag.
    """
    sums: dict[str, str] = {}
    for path in corpus.checksums:
        folder = path.rsplit("/", 1)[-1].partition("_SHA256SUMS")[0]
        try:
            text = web.read_text_file(f"{corpus.url_base}{path}", access)
        except SourceUnavailable as error:
            logger.warning("these files are checked by size only: %s", error)
            continue
        for line in text.splitlines():
            digest, _, name = line.strip().partition(" ")
            name = name.strip().lstrip("*").removeprefix("./")
            if len(digest) == 64 and set(digest.lower()) <= set("0123456789abcdef") and name:
                sums[name if "/" in name else f"{folder}/{name}"] = digest.lower()
    return sums
