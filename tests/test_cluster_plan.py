"""`--plan --cores`, `inspect --cost`, and the simulated tables of the documentation."""

from __future__ import annotations

import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.console import Console

from btlm_data import cluster_plan, pipeline
from btlm_data.cli import cli
from btlm_data.cluster_plan import Cluster, Storage, parse_price, parse_storage, requests_of, simulate
from btlm_data.errors import ConfigError
from btlm_data.estimate import Estimate, by_run_step
from btlm_data.formats import dataset
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from tests.benchmarks import simulate as tables
from tests.reads import counting

SAMPLE = ["prepare", "--source", "sample", "--seq-len", "512", "--plan"]


def run(*words: str) -> Any:
    return CliRunner().invoke(cli, list(words))


def test_the_tables_of_the_page_are_what_the_simulation_says() -> None:
    page = tables.PAGE.read_text()
    assert tables.with_tables(page) == page, "python -m tests.benchmarks.simulate"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2GB/s/node", Storage(2e9)),
        ("1.5 GB/s,20ms,5500/s", Storage(1.5e9, 0.02, 5500)),
        ("800MB/s/node, 250us", Storage(8e8, 2.5e-4)),
        ("s3", cluster_plan.S3),
    ],
)
def test_storage_in_words(text: str, expected: Storage) -> None:
    found = parse_storage(text)
    assert found.bytes_per_second == expected.bytes_per_second
    assert found.latency == pytest.approx(expected.latency)
    assert found.requests_per_second == expected.requests_per_second


@pytest.mark.parametrize(
    "text", ["", "2", "2GB", "0GB/s", "2GB/s,x", "2GB/s,1ms,1/s,2/s", "-1GB/s", "1GB/s,0/s"]
)
def test_other_storage_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--storage"):
        parse_storage(text)


@pytest.mark.parametrize("text", ["", "x", "1,2,3", "-1", "nan", "1,inf"])
def test_other_prices_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--price"):
        parse_price(text)


AMOUNTS = st.integers(0, 10**13)
STEPS = st.builds(
    Estimate,
    step=st.sampled_from(["read", "dedupe.a", "dedupe.b", "shard.write"]),
    tasks=st.integers(1, 100_000),
    source_bytes=AMOUNTS,
    read_bytes=AMOUNTS,
    reads=st.integers(0, 10**8),
    work_bytes=AMOUNTS,
    out_bytes=AMOUNTS,
    memory_bytes=AMOUNTS,
    cpu_seconds=st.floats(0, 1e6),
)


@settings(max_examples=30)
@given(st.lists(STEPS, min_size=1, max_size=5), st.integers(1, 5000), st.integers(1, 64))
def test_what_every_plan_must_be(steps: list[Estimate], cores: int, nodes: int) -> None:
    cluster = Cluster(cores * nodes, nodes, Storage(1e9, 1e-3), 3.0, 0.4)
    plan = simulate(steps, cluster)
    assert plan.core_seconds == pytest.approx(sum(step.cpu_seconds for step in steps))
    assert plan.seconds >= plan.core_seconds / cluster.cores * (1 - 1e-9)
    assert plan.requests == sum(map(requests_of, steps))
    assert plan.money >= plan.requests / 1e6 * 0.4
    faster = replace(cluster, storage=Storage(2e9, 5e-4))
    assert simulate(steps, faster).seconds <= plan.seconds * (1 + 1e-9)
    limited = replace(cluster, storage=Storage(1e9, 1e-3, 100.0))
    assert simulate(steps, limited).seconds >= max(plan.seconds, plan.requests / 100) * (1 - 1e-9)


def test_a_plan_in_words() -> None:
    step = Estimate("dedupe.cluster", tasks=4, cpu_seconds=7200.0, out_bytes=5 * 10**12, memory_bytes=10**9)
    written = io.StringIO()
    console = Console(width=100, file=written)
    cluster_plan.render(simulate([step], Cluster(2048, 32, Storage(2e9, 1e-3, 5500), 3.0)), console)
    shown = written.getvalue()
    assert "on 2,048 cores of 32 nodes, storage 2.0 GB/s a node, 1 ms a request, 5,500 requests/s" in shown
    assert re.search(r"all +4 +1 h \d+ min +2.00 +1.0 GB +5.0 TB +\d+ k +\d+", shown), shown
    assert "disk       5.0 TB at most" in shown
    cluster_plan.render(simulate([step], Cluster(64, 1, Storage(2e9, 1e-3), 3.0)), console)
    assert "on 64 cores of 1 node, storage" in written.getvalue()


def test_what_is_done_beside_a_step_takes_time_only_where_it_is_longer() -> None:
    cluster = Cluster(256, 8, Storage(2e9, 1e-3), 1.0, 0.0)
    write, tables = (
        Estimate("shard.write", 4096, cpu_seconds=40_960.0),
        Estimate("shard.tables", 1, cpu_seconds=30.0),
    )
    for longest in (30.0, 3000.0):
        copied = replace(tables, cpu_seconds=longest)
        apart = [simulate([step], cluster).seconds for step in (write, copied)]
        together = simulate([write, replace(copied, is_beside=True)], cluster)
        assert (
            together.seconds
            == max(apart)
            < sum(apart)
            == pytest.approx(simulate([write, copied], cluster).seconds)
        )
        assert together.core_seconds == write.cpu_seconds + longest


def test_one_task_is_as_slow_on_many_cores() -> None:
    step = Estimate("dedupe.cluster", tasks=1, cpu_seconds=100.0)
    assert simulate([step], Cluster(1)).seconds == pytest.approx(simulate([step], Cluster(4096, 64)).seconds)
    many = replace(step, tasks=4096)
    assert simulate([many], Cluster(4096, 64)).seconds < 5
    tiny = replace(step, tasks=100_000, cpu_seconds=1.0)  # the driver takes longest
    assert simulate([tiny], Cluster(4096, 64, engine="parsl")).seconds == pytest.approx(140, rel=0.01)


@pytest.mark.parametrize("moving", [0.3, 1.0, 3.0])
def test_workers_wait_for_each_other_as_in_a_simulation_of_each(moving: float) -> None:
    """moving: of the bytes of all workers' tasks at the node's whole rate, against computing."""
    cores, tasks, rate = 16, 1600, 1e9
    alone = moving / cores
    simulated = simulate_each(cores, tasks, 1.0, alone)
    num_bytes = int(alone * rate * tasks)
    step = Estimate("dedupe.cluster", tasks=tasks, cpu_seconds=1.0 * tasks, read_bytes=num_bytes)
    planned = simulate([step], Cluster(cores, 1, Storage(rate, 0.0))).seconds
    assert planned == pytest.approx(simulated, rel=0.05)
    together = (1.0 + cores * alone) * tasks / cores  # all compute, then all move
    most = max(1.0 + alone, cores * alone) * tasks / cores  # one of both is always busy
    assert most < simulated < together


def simulate_each(cores: int, tasks: int, computing: float, alone: float) -> float:
    """Seconds of tasks of different lengths, each of which computes and then moves its bytes at an equal part of the rate."""
    chance = random.Random(0)
    now, begun = 0.0, 0
    ends: dict[int, float] = {}  # of those that compute: when they have done so
    left: dict[int, float] = {}  # of those that move: seconds at the whole rate
    length: dict[int, float] = {}

    def begin(worker: int) -> None:
        nonlocal begun
        if begun < tasks:
            begun += 1
            length[worker] = chance.uniform(0.3, 1.7)
            ends[worker] = now + computing * length[worker]

    for worker in range(cores):
        begin(worker)
    while ends or left:
        moments = [*ends.values(), *(now + least * len(left) for least in left.values())]
        elapsed = (min(moments) - now) / max(1, len(left))
        now = min(moments)
        left = {worker: rest - elapsed for worker, rest in left.items()}
        for worker in [worker for worker, end in ends.items() if end <= now + 1e-9]:
            del ends[worker]
            left[worker] = alone * length[worker]
        for worker in [worker for worker, rest in left.items() if rest <= 1e-9]:
            del left[worker]
            begin(worker)
    return now


def test_the_command_line(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    words = ["--cores", "2048", "--nodes", "32", "--storage", "2GB/s/node", "--price", "3,0.4"]
    plan = json.loads(run(*SAMPLE, *out, *words, "--json").output)
    assert plan["cluster"]["cluster"]["cores"] == 2048
    assert [stage["stage"] for stage in plan["cluster"]["stages"]][:2] == ["acquire", "read"]
    assert not (tmp_path / "out").exists()
    for wrong, named in (
        (["--nodes", "2"], "--nodes"),
        (["--cores", "2", "--nodes", "3"], "--nodes 3"),
        (["--cores", "2", "--storage", "fast"], "--storage fast"),
        (["--cores", "2", "--price", "x"], "--price x"),
    ):
        refused = run(*SAMPLE, *out, *wrong)
        assert isinstance(refused.exception, ConfigError)
        assert named in str(refused.exception)
    unplanned = run(*SAMPLE[:-1], *out, "--cores", "2")
    assert isinstance(unplanned.exception, ConfigError)
    assert "--plan" in str(unplanned.exception)


def test_reads_are_counted_as_planned_and_the_cost_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_ = {"source.name": "sample", "run.out": str(tmp_path / "out"), "run.workers": 1, "seq_len": 512}
    recipe = load(None, {key: (value, "test") for key, value in given_.items()})
    from btlm_data import planning

    planned = by_run_step(planning.measure(recipe).steps)
    with counting(monkeypatch) as found:
        pipeline.prepare(recipe, Lines())
    for name, reads in found.items():
        counted = reads.tables.reads
        if counted > 30 and planned[name].reads and name not in ("dedupe.members", "dedupe.compare"):
            assert counted / 3 <= planned[name].reads <= 3 * counted, (name, counted, planned[name].reads)
    shown = run("inspect", "--cost", str(tmp_path / "out"))
    assert shown.exit_code == 0, shown.output
    cost = json.loads(run("inspect", "--cost", "--json", str(tmp_path / "out")).output)
    steps = {step["step"]: step for step in cost["steps"]}
    assert steps["read"]["planned_tasks"] == steps["read"]["tasks"] == 3
    assert steps["read"]["planned_bytes"] == pytest.approx(steps["read"]["written_bytes"], rel=0.1)
    assert steps["shard.write"]["written_bytes"] == sum(
        file.bytes for file in dataset.read_set(tmp_path / "out").stored()
    )
    assert cost["workers"] == 1
    (tmp_path / "out/provenance.json").unlink()
    assert "provenance.json" in str(run("inspect", "--cost", str(tmp_path / "out")).exception)
