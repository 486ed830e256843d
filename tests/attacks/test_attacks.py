"""Every probe holds: the quick ones always, all of them in `make stress`."""

from __future__ import annotations

import collections
import re
from pathlib import Path

import pytest

from tests.attacks.bench import PROBES, ROOT, Probe, try_one
from tests.attacks.probes import GROUPS


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attacks")


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(one, marks=() if one.is_quick else pytest.mark.stress, id=f"{one.group}: {one.name}")
        for one in PROBES
    ],
)
def test_a_probe_holds(one: Probe, cache: Path) -> None:
    wrong = try_one(one, cache)
    assert wrong is None, wrong


def test_there_are_probes_of_every_kind() -> None:
    assert {one.group for one in PROBES} == set(GROUPS)
    assert len(PROBES) >= 600
    assert len({(one.group, one.name) for one in PROBES}) == len(PROBES)


def test_the_table_of_attacks_is_of_these_probes() -> None:
    """SECURITY.md says how many of each group were tried in a whole run, and that all of them held."""
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (\d+) \|$", (ROOT / "SECURITY.md").read_text(), re.M)
    numbers = collections.Counter(one.group for one in PROBES)
    assert {name: (int(tried), int(held)) for name, tried, held in rows} == {
        name: (count, count) for name, count in numbers.items()
    }
