"""What RedPajama-1T and a corpus of 15 x 10^12 tokens would take on clusters: `python -m tests.benchmarks.simulate`.

Writes the tables of docs/large-runs.md, which tests/test_cluster_plan.py holds against this. Costs of tasks are those of
btlm_data/estimate.py, measured by tests/benchmarks/rates.py.
"""

from __future__ import annotations

import re
from pathlib import Path

from msgspec.structs import replace

from btlm_data import planning
from btlm_data.cluster_plan import LUSTRE, NVME, S3, Cluster, ClusterPlan, simulate
from btlm_data.estimate import Estimate, Volume, Workload
from btlm_data.recipe.models import Run, Settings
from btlm_data.wording import amount, duration

PAGE = Path(__file__).resolve().parents[2] / "docs/large-runs.md"
NODE_HOUR, MILLION_REQUESTS = 3.0, 0.4
MEMORY = 2 * 10**9  # of a worker
# 4.8 TB in plain JSON lines, read in ranges of 64 MB.
REDPAJAMA = Volume(2_084, 71_526, 4_800 * 10**9, 1_200 * 10**6, 4_800 * 10**9, 1_200 * 10**9)
COPIED = 0.5  # share of the documents that are in components of two or more
FIFTEEN = Volume(26_048, 894_072, 60_000 * 10**9, 15_000 * 10**6, 60_000 * 10**9, 15_000 * 10**9)
CLUSTERS = {
    "64 cores, NVMe": Cluster(64, 1, NVME, NODE_HOUR, 0.0),
    "32 x 64 cores, NVMe each": Cluster(2048, 32, NVME, NODE_HOUR, 0.0),
    "32 x 64 cores, Lustre": Cluster(2048, 32, LUSTRE, NODE_HOUR, 0.0),
    "32 x 64 cores, S3": Cluster(2048, 32, S3, NODE_HOUR, MILLION_REQUESTS),
    "128 x 64 cores, Lustre": Cluster(8192, 128, LUSTRE, NODE_HOUR, 0.0),
    "128 x 64 cores, S3": Cluster(8192, 128, S3, NODE_HOUR, MILLION_REQUESTS),
}


def steps_of(volume: Volume, in_components: float = 0.0) -> tuple[Estimate, ...]:
    """The steps of a run with the defaults at 2,048 tokens, a validation split drawn. in_components: share of the documents
    that are nominated as duplicates and compared; none of them goes.
    """
    settings = Settings.model_validate(
        {"source": {"name": "sample"}, "seq_len": 2048, "holdout": {"fraction": 0.001}}
    )
    run = Run(out=".", workers=1, memory=MEMORY)
    workload = Workload(volume, settings, run, eos_id=50_256, splits=2, in_components=in_components)
    return planning.estimates(workload)


def one_core_seconds(steps: tuple[Estimate, ...], cluster: Cluster) -> float:
    """Seconds of steps that are one task."""
    return sum(simulate([step], cluster).seconds for step in steps if step.tasks == 1)


def row(name: str, steps: tuple[Estimate, ...], cluster: Cluster) -> str:
    """One row of the first table."""
    plan = simulate(steps, cluster)
    cells = [
        duration(plan.seconds),
        f"{plan.core_seconds / 3600:,.0f}",
        duration(one_core_seconds(steps, cluster)),
        amount(plan.node_bytes, "B"),
        amount(plan.disk_bytes, "B"),
        _number(plan.requests),
        f"{plan.money:,.0f}",
    ]
    return f"| {name} | " + " | ".join(cells) + " |"


def overview() -> list[str]:
    """RedPajama-1T and 15 x 10^12 tokens on every cluster."""
    lines = [
        "| corpus, machine | time | core hours | of the time on one core | memory a node | disk | requests | price |",
        "|---|---|---|---|---|---|---|---|",
    ]
    small, large, copied = steps_of(REDPAJAMA), steps_of(FIFTEEN), steps_of(REDPAJAMA, COPIED)
    lines += [row(f"RedPajama-1T, {name}", small, cluster) for name, cluster in CLUSTERS.items()]
    lines += [
        row(f"RedPajama-1T, {COPIED:.0%} compared, {name}", copied, cluster)
        for name, cluster in CLUSTERS.items()
    ]
    lines += [row(f"15 x 10^12 tokens, {name}", large, cluster) for name, cluster in CLUSTERS.items()]
    return lines


def by_step(volume: Volume, cluster: Cluster, least: float = 0.02, *, compared: float = 0.0) -> list[str]:
    """The steps that take most of the time; with a share of documents that are compared, only those that it adds to."""
    steps = steps_of(volume, compared)
    if compared:
        plain = {step.step: step for step in steps_of(volume)}
        steps = tuple(step for step in steps if plain.get(step.step) != step)
    whole = simulate(steps, replace(cluster, node_hour=0.0)).seconds
    lines = [
        "| step | tasks | time | core hours | reads and writes | requests |",
        "|---|---|---|---|---|---|",
    ]
    for step in steps:
        plan: ClusterPlan = simulate([step], cluster)
        if plan.seconds < least * whole:
            continue
        moved = step.source_bytes + step.read_bytes + step.work_bytes + step.out_bytes
        lines.append(
            f"| {step.step} | {step.tasks:,} | {duration(plan.seconds)} | {step.cpu_seconds / 3600:,.2f} | "
            f"{amount(moved, 'B')} | {_number(plan.requests)} |"
        )
    return lines


def _number(value: float) -> str:
    return amount(value, "request").removesuffix(" requests")


def tables() -> list[list[str]]:
    """The tables of the page, in order."""
    nvme = CLUSTERS["32 x 64 cores, NVMe each"]
    return [overview(), by_step(REDPAJAMA, nvme), by_step(REDPAJAMA, nvme, 0.0, compared=COPIED)]


def with_tables(page: str) -> str:
    """The page with its tables made anew."""
    made = iter("\n".join(table) + "\n" for table in tables())
    before, heading, after = page.partition("\n## RedPajama-1T")
    return before + heading + re.sub(r"(?:^\|.*\n)+", lambda _: next(made), after, flags=re.M)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
