from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from btlm_data.recipe.models import Run
from tests.hub import Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
    from huggingface_hub import close_session

    from btlm_data.sources.http import close_web_session

    close_session()
    close_web_session()


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """A Run whose pauses are short enough for tests."""

    def make(**options: Any) -> Run:
        return Run(
            **{
                "cache_dir": str(tmp_path / "cache"),
                "cache_size": 10**7,
                "timeout": 5,
                "retries": 4,
                "retry_pause": 0.005,
            }
            | options
        )

    return make
