"""What the Hugging Face hub refuses, in plain words: what happened, and what the user can do."""

from __future__ import annotations

import os
from typing import NoReturn

from btlm_data.errors import SourceUnavailable
from btlm_data.sources.http import reason_of

# What huggingface_hub raises for an answer that is not a hub's.
NO_LISTING = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
_ADVICE = "Check the name, set HF_TOKEN if it is private or gated, or name a mirror, a local folder or another source."


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT as it is now, or the public hub."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def explain(error: Exception, subject: str, revision: str | None = None) -> SourceUnavailable:
    """A hub error in plain words. subject: the data set or file."""
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RevisionNotFoundError

    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    address = endpoint()
    if isinstance(error, OfflineModeIsEnabled):
        kept = _kept_snapshot(subject, revision)
        advice = (
            f"It was downloaded before: give --source {kept}"
            if kept
            else "Unset HF_HUB_OFFLINE, or give --source a local folder with the files"
        )
        return SourceUnavailable(
            f"{subject} is on the hub, and HF_HUB_OFFLINE forbids to go there. {advice}."
        )
    if isinstance(error, GatedRepoError) or status == 403:
        return SourceUnavailable(
            f"{subject} is gated: {address} wants to know who reads it. "
            f"Open its page, accept its terms, then set HF_TOKEN to a token of that account (yours is {_token_state()}) and run again."
        )
    if isinstance(error, RevisionNotFoundError):
        return SourceUnavailable(
            f"{subject} has no revision {revision!r} at {address}. Leave --set source.revision out to read the newest, or name a branch, tag or commit it has."
        )
    if status == 401:
        return SourceUnavailable(
            f"{subject} was refused by {address} (401, not authorised): it is private, gated, gone, or the token is wrong (it is {_token_state()}). "
            f"{_ADVICE}"
        )
    if status == 404:
        return SourceUnavailable(f"{subject} was not found at {address} (404). {_ADVICE}")
    if status == 429:
        return SourceUnavailable(
            f"{subject}: {address} still answers 429 (too many requests) after every pause it requested. "
            "Wait an hour and run the same command again (it continues from here), or set HF_TOKEN: known users may ask more often."
        )
    silent = status is None and not isinstance(error, NO_LISTING)
    problem = "cannot be reached" if silent else "does not answer as it should"
    reason = reason_of(error) if status is None else f"status {status}"
    return SourceUnavailable(
        f"{subject} cannot be read: {address} {problem} ({reason}). "
        "Check the network (HTTPS_PROXY, HF_ENDPOINT), and run the same command again: it continues from here."
    )


def refuse(repository: str, problem: str) -> NoReturn:
    """Raise SourceUnavailable for a data set whose listing is of no use."""
    raise SourceUnavailable(f"The data set {repository} cannot be used: {problem}. {_ADVICE}")


def _kept_snapshot(repository: str, revision: str | None) -> str | None:
    """The folder in which `hf download` keeps a data set, or None. Sends no request."""
    from huggingface_hub import snapshot_download

    try:
        return str(
            snapshot_download(repository, repo_type="dataset", revision=revision, local_files_only=True)
        )
    except (OSError, ValueError):  # not there, or `repository` is no name of one
        return None


def _token_state() -> str:
    from huggingface_hub import get_token

    return "set" if get_token() else "not set"
