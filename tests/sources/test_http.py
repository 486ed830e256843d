"""How servers are asked; and that what we use of huggingface_hub is public and still does what we use it for."""

from __future__ import annotations

import ast
import email.utils
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import btlm_data.sources
from btlm_data.sources.http import Abandoned, hub_session, retry_after, stop_asking_after
from btlm_data.storage.retry import TransientError, within
from tests.hub import Hub

FOLDER = Path(btlm_data.sources.__path__[0])


def test_retry_after_in_every_form() -> None:
    assert retry_after({"retry-after": "7"}) == 7.0
    soon = retry_after({"retry-after": email.utils.formatdate(time.time() + 20, usegmt=True)})
    assert soon is not None
    assert 15 < soon <= 20
    assert retry_after({"retry-after": "Fri, 99 Foo"}) is None
    assert retry_after({"retry-after": "9" * 5000}) is not None
    assert retry_after({"ratelimit": '"api";r=0;t=30'}) == 30.0  # the hub's own, through huggingface_hub
    assert retry_after({"ratelimit": '"api";r=5;t=30'}) is None
    assert retry_after({}) is None


def test_no_request_of_the_hubs_session_waits_for_ever(hub: Hub) -> None:
    seen: list[dict[str, Any]] = []
    for seconds in (9.0, 7.0):
        client = hub_session(seconds)
        before = len(client.event_hooks["request"])
        assert hub_session(seconds) is client
        assert len(client.event_hooks["request"]) == before
    client.event_hooks = {
        **client.event_hooks,
        "request": [
            *client.event_hooks["request"],
            lambda request: seen.append(request.extensions["timeout"]),
        ],
    }
    client.get(f"{hub.url}/nothing", timeout=None)
    client.get(f"{hub.url}/nothing", timeout=3.0)
    assert [set(limits.values()) for limits in seen] == [{7.0}, {3.0}]


def test_offline_mode_still_holds_in_the_hubs_session(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineModeIsEnabled):
        hub_session(5.0).get(f"{hub.url}/nothing")


def test_a_thread_whose_listing_was_given_up_asks_no_more(hub: Hub) -> None:
    ended, refused = threading.Event(), []

    def ask() -> None:
        stop_asking_after(ended)
        client = hub_session(5.0)
        client.get(f"{hub.url}/nothing")
        ended.set()
        try:
            client.get(f"{hub.url}/nothing")
        except Abandoned:
            refused.append(True)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert refused == [True]
    hub_session(5.0).get(f"{hub.url}/nothing")  # other threads still may


def test_an_answer_is_not_waited_for_longer_than_said() -> None:
    begin = time.monotonic()
    with pytest.raises(TransientError, match="no answer"):
        within(0.1, lambda: time.sleep(2))
    assert time.monotonic() - begin < 1
    assert within(5, lambda: 3) == 3
    with pytest.raises(TimeoutError):
        within(5, _too_late)


def _too_late() -> None:
    raise TimeoutError


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_nothing_private_of_another_library_is_used(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("btlm_data"):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        private = [name for name in names if name.startswith("_") and name != "__future__"]
        assert not private, f"{path.name} line {getattr(node, 'lineno', 0)}: {private}"
