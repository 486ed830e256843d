"""Files of a model repository on the hub."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path

from btlm_data.errors import ConfigError, SourceUnavailable
from btlm_data.storage.retry import FIRST_ANSWER, within

logger = logging.getLogger(__name__)


def hub_file(repo_id: str, name: str, revision: str | None) -> Path:
    """Download one file of a model repository into the hub's cache, or find it there.

    Raises ConfigError if there is no such repository, revision or file, SourceUnavailable if the hub cannot
    be reached.
    """
    path = _hub_file(repo_id, name, revision)
    if path is None:
        raise ConfigError(
            f"The hub repository {_shown(repo_id, revision)} holds no {name}. "
            "Convert the tokenizer with transformers and name the file that it writes."
        )
    return path


def optional_hub_file(repo_id: str, name: str, revision: str) -> Path | None:
    """The same; None if the repository has no such file, or the hub cannot be reached and the cache does not
    have it.
    """
    try:
        return _hub_file(repo_id, name, revision)
    except _NotCached:
        return None


class _NotCached(SourceUnavailable):
    """The hub cannot be reached, and the file is not in its cache."""


def _shown(repo_id: str, revision: str | None) -> str:
    return f"{repo_id} at revision {revision}" if revision else repo_id


@functools.cache
def _answers(endpoint: str) -> bool:
    """Whether a hub answers at all; asked once. The client itself would repeat for half a minute."""
    from huggingface_hub import get_session

    def ask() -> None:
        get_session().head(endpoint, timeout=FIRST_ANSWER)

    try:
        within(FIRST_ANSWER, ask)
    except Exception as error:  # of the network, its own or ours; or the offline mode
        logger.debug("%s: %s", endpoint, error)
        return False
    return True


def _hub_file(repo_id: str, name: str, revision: str | None) -> Path | None:
    """The file; None if the repository has none of that name."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    shown = _shown(repo_id, revision)
    # HF_ENDPOINT as it is now: the client reads it only once, when it is first imported.
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    from_cache = not _answers(endpoint)
    try:
        return Path(
            hf_hub_download(repo_id, name, revision=revision, endpoint=endpoint, local_files_only=from_cache)
        )
    except GatedRepoError as error:
        raise SourceUnavailable(
            f"The hub repository {shown} is gated. "
            "Accept its terms on its page, then set HF_TOKEN or run `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(
            f"The hub repository {repo_id} has no revision {revision}. Check tokenizer.revision."
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"There is no tokenizer {shown}: neither a file or folder here nor a repository on the hub. "
            "Check the name; if it is private, set HF_TOKEN."
        ) from error
    except LocalEntryNotFoundError as error:
        raise _NotCached(
            f"The hub cannot be reached for {name} of {shown}, and it is not in the cache. "
            "Check the connection, or name a tokenizer.json."
        ) from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError) as error:
        raise SourceUnavailable(
            f"The hub refused {name} of {shown}: {error}. Try again later, or name a tokenizer.json."
        ) from error
