"""`prepare --plan --cores N`: time, memory, disk, requests and money of a run on a cluster, stage by stage.

The costs of tasks are those that `--plan` measures or knows (estimate.py). Steps follow each other; the tasks of a
step are dealt to the cores as these become free, so that a step takes at most its work divided by the cores
and the longest of its tasks more. A task computes, waits for each of its requests in turn, and moves its bytes;
nothing of this is taken to overlap within a task. The tasks of a node share its rate among those that move bytes at the
moment (`_moving_seconds`). The driver hands out and collects tasks one by one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from btlm_data.errors import ConfigError
from btlm_data.estimate import Estimate, peak_work_bytes
from btlm_data.wording import amount, counted, duration

# Of the driver's processor for each task, by engine (tests/benchmarks/bench_driver.py).
DRIVER_SECONDS = {"local": 1e-4, "workers": 3e-4, "ray": 1e-3, "parsl": 1.4e-3}
OPEN_REQUESTS = 2  # of a file: its head, and the checksums of its chunks
TASK_REQUESTS = 4  # its description read, its claim, its outputs' publication, its receipt
REQUEST_BYTES = 8 * 2**20  # that one request moves at most
LONGEST_TASK = 2.0  # times the average one
_BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_RATE = re.compile(r"(?P<number>\d+(?:\.\d+)?) ?(?P<unit>[kMGT]?)B/s(?:/node)?")
_LATENCY = re.compile(r"(?P<number>\d+(?:\.\d+)?) ?(?P<unit>us|ms|s)")
_REQUESTS = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?:/s)")


class Storage(msgspec.Struct, frozen=True):
    """What holds the work folder and the source. bytes_per_second: that a node reads or writes. latency: seconds of a
    request. requests_per_second: of all nodes below one prefix; None: no limit.
    """

    bytes_per_second: float
    latency: float = 1e-4
    requests_per_second: float | None = None


NVME = Storage(10e9, 1e-4)  # two drives
LUSTRE = Storage(2e9, 1e-3)
S3 = Storage(3e9, 2e-2, 5500)


class Cluster(msgspec.Struct, frozen=True):
    """Where a run would be. cores: of all nodes. node_hour, million_requests: prices, in any currency. engine: that hands
    out the tasks.
    """

    cores: int
    nodes: int = 1
    storage: Storage = NVME
    node_hour: float = 0.0
    million_requests: float = 0.0
    engine: str = "workers"

    @property
    def cores_per_node(self) -> int:
        """Cores of each node, rounded up."""
        return -(-self.cores // self.nodes)


class StageCost(msgspec.Struct, frozen=True):
    """What a stage takes. seconds: by the clock. node_bytes: memory of one node. money: nodes and requests.
    longest_step: what takes most of the time.
    """

    stage: str
    tasks: int
    seconds: float
    core_seconds: float
    node_bytes: int
    written_bytes: int
    requests: int
    money: float
    longest_step: str


class ClusterPlan(msgspec.Struct, frozen=True):
    """The stages in order, and their sums. disk_bytes: the most in the work folder at once, and the dataset."""

    cluster: Cluster
    stages: tuple[StageCost, ...]
    seconds: float
    core_seconds: float
    node_bytes: int
    disk_bytes: int
    requests: int
    money: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


def parse_storage(text: str) -> Storage:
    """`2GB/s/node[,1ms][,5500/s]`: rate of a node, latency of a request, requests a second. Raises ConfigError."""
    named = {"nvme": NVME, "lustre": LUSTRE, "s3": S3}
    if text.lower() in named:
        return named[text.lower()]
    rate_text, *others = (part.strip() for part in text.split(","))
    rate = _RATE.fullmatch(rate_text)
    if rate is None or float(rate["number"]) == 0 or len(others) > 2:
        raise _wrong(text)
    latency, limit = NVME.latency, None
    for part in others:
        if (match := _LATENCY.fullmatch(part)) is not None:
            latency = float(match["number"]) * _SECONDS[match["unit"]]
        elif (match := _REQUESTS.fullmatch(part)) is not None and float(match["number"]):
            limit = float(match["number"])
        else:
            raise _wrong(text)
    return Storage(float(rate["number"]) * _BYTES[rate["unit"]], latency, limit)


def parse_price(text: str) -> tuple[float, float]:
    """`HOUR[,REQUESTS]`: of a node for an hour, and of a million requests. Raises ConfigError."""
    parts = text.split(",")
    try:
        hour, requests = (float(part) for part in (parts if len(parts) == 2 else [*parts, "0"]))
    except ValueError:
        hour = requests = -1.0
    if not (0 <= hour < 1e9 and 0 <= requests < 1e9):
        raise ConfigError(
            f"--price {text}: expected what a node costs for an hour and, after a comma, a million requests, such as 3.20,0.40."
        )
    return hour, requests


def _wrong(text: str) -> ConfigError:
    return ConfigError(
        f"--storage {text}: expected nvme, lustre, s3, or what a node reads in a second, such as 2GB/s/node; after it, with "
        "commas between, how long a request takes and how many a second are allowed: 2GB/s/node,20ms,5500/s."
    )


def requests_of(step: Estimate) -> int:
    """Requests that a step makes: opening and reading files, moving large amounts in pieces, and what every task needs."""
    moved = step.source_bytes + step.read_bytes + step.work_bytes + step.out_bytes
    return (
        (TASK_REQUESTS + OPEN_REQUESTS) * step.tasks
        + OPEN_REQUESTS * step.reads // 3
        + step.reads
        + moved // REQUEST_BYTES
    )


def seconds_of(step: Estimate, cluster: Cluster) -> float:
    """Seconds that a step takes by the clock."""
    tasks = max(1, step.tasks)
    at_once = min(cluster.cores, tasks)
    moved = step.source_bytes + step.read_bytes + step.work_bytes + step.out_bytes
    requests = requests_of(step)
    on_a_node = -(-at_once // cluster.nodes)
    cores = max(1.0, min(step.cores, cluster.cores_per_node / on_a_node))
    apart = step.cpu_seconds / cores + requests * cluster.storage.latency
    moving = _moving_seconds(apart / tasks, moved / tasks / cluster.storage.bytes_per_second, on_a_node)
    work = apart + moving * tasks
    longest = work / tasks * (LONGEST_TASK if tasks > 1 else 1.0)
    seconds = max(longest, work / at_once + longest * (1 - 1 / at_once))
    if cluster.storage.requests_per_second is not None:
        seconds = max(seconds, requests / cluster.storage.requests_per_second)
    return max(seconds, step.tasks * DRIVER_SECONDS[cluster.engine])


def _moving_seconds(apart: float, alone: float, workers: int) -> float:
    """Seconds that a task moves its bytes for, on average, while the others of its node compute or move theirs.

    apart: seconds that a task does other things. alone: seconds that its bytes take one task that has the node's whole rate.
    A node is a closed network of `workers` customers, of a processor each and one storage that all share: mean value
    analysis (Reiser and Lavenberg, 1980). Between the two limits that are easily named, no overlap at all
    (`workers * alone`: all move at the same moments) and as much as there can be (the slower of processors and storage is
    always busy), it is close to the second, since tasks differ in length.
    """
    moving, others = alone, 0.0
    for count in range(1, workers + 1):
        moving = alone * (1 + others)
        others = count * moving / (moving + apart) if moving + apart > 0 else 0.0
    return moving


def simulate(steps: Sequence[Estimate], cluster: Cluster) -> ClusterPlan:
    """What the steps of a run take on a cluster."""
    by_stage: dict[str, list[Estimate]] = {}
    for step in steps:
        if step.tasks:
            by_stage.setdefault(step.stage, []).append(step)
    stages = tuple(_stage(name, parts, cluster) for name, parts in by_stage.items())
    return ClusterPlan(
        cluster,
        stages,
        sum(stage.seconds for stage in stages),
        sum(stage.core_seconds for stage in stages),
        max((stage.node_bytes for stage in stages), default=0),
        peak_work_bytes(steps) + sum(step.out_bytes for step in steps),
        sum(stage.requests for stage in stages),
        sum(stage.money for stage in stages),
    )


def _stage(name: str, steps: Sequence[Estimate], cluster: Cluster) -> StageCost:
    seconds = [seconds_of(step, cluster) for step in steps]
    clock: list[float] = []
    for step, taken in zip(steps, seconds, strict=True):
        if step.is_beside and clock:
            clock[-1] = max(clock[-1], taken)
        else:
            clock.append(taken)
    requests = sum(requests_of(step) for step in steps)
    held = max(
        step.memory_bytes * min(cluster.cores_per_node, -(-max(1, step.tasks) // cluster.nodes))
        for step in steps
    )
    total = sum(clock)
    return StageCost(
        name,
        sum(step.tasks for step in steps),
        total,
        sum(step.cpu_seconds for step in steps),
        held,
        sum(step.work_bytes + step.out_bytes for step in steps),
        requests,
        total / 3600 * cluster.nodes * cluster.node_hour + requests / 1e6 * cluster.million_requests,
        steps[seconds.index(max(seconds))].step,
    )


def render(plan: ClusterPlan, console: Console) -> None:
    """Print a plan for a cluster."""
    cluster, storage = plan.cluster, plan.cluster.storage
    has_price = cluster.node_hour > 0 or cluster.million_requests > 0
    limit = (
        f", {storage.requests_per_second:,.0f} requests/s" if storage.requests_per_second is not None else ""
    )
    console.print(
        f"on {counted(cluster.cores, 'core')} of {counted(cluster.nodes, 'node')}, storage {amount(storage.bytes_per_second, 'B')}/s a node, "
        f"{storage.latency * 1e3:g} ms a request{limit}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage", no_wrap=True, style="bold")
    for column in ("tasks", "time", "core hours", "memory a node", "written", "requests"):
        table.add_column(column, justify="right", no_wrap=True)
    if has_price:
        table.add_column("price", justify="right", no_wrap=True)
    rows: list[Mapping[str, Any]] = [msgspec.to_builtins(stage) for stage in plan.stages]
    rows.append(
        msgspec.to_builtins(plan) | {"stage": "all", "tasks": sum(stage.tasks for stage in plan.stages)}
    )
    for row in rows:
        written = row.get("written_bytes", sum(stage.written_bytes for stage in plan.stages))
        cells = [
            f"{row['tasks']:,}",
            duration(row["seconds"]),
            f"{row['core_seconds'] / 3600:,.2f}",
            amount(row["node_bytes"], "B"),
            amount(written, "B"),
            amount(row["requests"], "request").removesuffix(" requests").removesuffix(" request"),
        ]
        table.add_row(row["stage"], *cells, *([f"{row['money']:,.2f}"] if has_price else []))
    console.print(table)
    console.print(f"disk       {amount(plan.disk_bytes, 'B')} at most", highlight=False)
