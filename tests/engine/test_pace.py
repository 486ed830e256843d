"""Free workers and their driver see soon what is new, and cost little while nothing is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from btlm_data.engine import pace, published, worker
from btlm_data.engine.pace import Pace
from btlm_data.storage import open_store
from btlm_data.storage.claims import CLAIMS, WORKERS, Watch, remove_dead, working


@pytest.mark.parametrize(("look", "shortest"), [(0.001, pace.SHORTEST), (0.05, 0.1), (0.001, 2.0)])
def test_what_is_waited_for_is_seen_soon_and_seldom_looked_for(
    monkeypatch: pytest.MonkeyPatch, look: float, shortest: float
) -> None:
    now, seen = 100.0, []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    waiting = Pace(longest=5.0)
    while now < 1100.0:
        before, now = now, now + waiting.pause(look, shortest) + look
        late = now - before  # for what happened right after the look
        assert late <= 1.3 * max(shortest, (before - 100) / 20, 4 * look) + look
        assert late <= 1.3 * 5.0 + look
        assert late >= 0.7 * shortest
        seen.append(late)
    assert len(seen) < 400, "mostly the longest pause: 5 s"
    assert len({round(late, 6) for late in seen[-50:]}) > 10, "workers do not look at the same moments"
    waiting.restart()
    assert waiting.pause(look, shortest) <= 1.3 * max(shortest, 4 * look)


def test_a_worker_without_a_task_looks_at_the_board_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listing the tasks of a step costs a request for each thousand: only a new board is a reason for it at once."""
    store = open_store(tmp_path)
    looks, lists = [], []
    there = published.Published(store.url, "engine/x-1.jobs", 0, {}, (0, 0))
    published.post(store, there, 3)
    read, post = published.read_board, published.post

    def looked(place: object) -> published.Board | None:
        looks.append(1)
        if len(looks) == 15:
            post(store, there, 3)  # the same tasks again
        return read(store)

    monkeypatch.setattr(published, "read_board", looked)
    monkeypatch.setattr(worker, "_work_on", lambda *_: lists.append(len(looks)) or 0)
    assert worker.work(store, worker.Share(), 0.8) == 0
    assert len(looks) > 15
    assert lists == [1, 15]
    assert not store.list(WORKERS)


def test_dead_workers_leave_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with working(store) as alive, working(store) as dead:
        dead.state |= {"process": 2**22 + 1, "started": 5}
        assert alive.take("a", "0")
        assert dead.take("a", "1")
        assert dead.take("a", "2")
        assert remove_dead(store, Watch(store).claims(), Watch(store)) == 1
        assert [entry.name for entry in store.list(CLAIMS)] == [f"{CLAIMS}/a/0"]
        assert [entry.name for entry in store.list(WORKERS)] == [f"{WORKERS}/{alive.name}"]
