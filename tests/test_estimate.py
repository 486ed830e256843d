from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from btlm_data import planning
from btlm_data.estimate import Estimate, Volume, Workload, by_run_step, by_stage, peak_work_bytes
from btlm_data.recipe.load import load
from tests import costs

# Stages that do nothing of their own: starting and listing, and tokens, which are made in the pass of `clean`.
WITHOUT_STEPS = {"acquire", "tokenize"}
SMALL_BYTES = 200_000  # of a step's files, below which heads and checksums of files are most of them
SMALL_SECONDS = (
    0.4  # of CPU, below which a compiled kernel's loading or one collection of garbage is most of it
)
# What these take follows from how many duplicates there are, which no plan can know.
OF_DUPLICATES = {"dedupe.members", "dedupe.compare", "dedupe.decide"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 25 MB of text in 16,000 documents of many lengths, nearly all different, plain and compressed; two sources."""
    folder = tmp_path_factory.mktemp("corpus")
    random_ = random.Random(3)
    letters = "etaoinshrdlucmfwygpbvk"
    words = ["".join(random_.choices(letters, k=random_.randint(2, 9))) for _ in range(5000)]
    for number in range(4):
        lines = []
        for _ in range(4000):
            length = min(20_000, int(40 + random_.expovariate(1 / 200)))
            record = {
                "text": " ".join(random_.choices(words, k=length)),
                "meta": {"redpajama_set_name": random_.choice(["RedPajamaC4", "RedPajamaBook"])},
            }
            lines.append(json.dumps(record) + "\n")
        data = "".join(lines).encode()
        if number % 2:
            data = zstandard.ZstdCompressor(level=1).compress(data)
        (folder / f"{number}.jsonl{'.zst' if number % 2 else ''}").write_bytes(data)
    return folder


VARIANTS: dict[str, tuple[list[str], dict[str, str]]] = {
    "as it comes": ([], {}),
    "small memory": (["run.memory=2MB"], {"BTLM_SCATTER": "1"}),
    "vsl, two lengths": (["format=vsl", "seq_len=[256, 1024]", 'mix={"RedPajamaBook": 2.5}'], {}),
    "corpus, exact, text": (["format=corpus", "dedupe.method=exact", "run.emit_text=OUT-text"], {}),
    "shares, holdout": (
        ['seq_len=["512:0.75", "1024:0.25"]', "dedupe.method=none", "holdout.fraction=0.05"],
        {},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_estimates_are_near_what_a_run_takes(variant: str, corpus: Path, tmp_path: Path) -> None:
    assignments, environment = VARIANTS[variant]
    check_run(corpus, tmp_path, *assignments, **environment)


def test_estimates_of_the_sample_are_near_what_a_run_takes(tmp_path: Path) -> None:
    check_run("sample", tmp_path)


def check_run(source: Path | str, folder: Path, *assignments: str, **environment: str) -> None:
    """Of a run, or of the next: a step whose kernels nobody has used yet compiles them, which is not estimated."""
    for last in (False, True):
        out = folder / ("again" if last else "out")
        real = costs.measure(source, out, *(a.replace("OUT", str(out)) for a in assignments), **environment)
        try:
            check(real)
        except AssertionError:
            if last:
                raise
        else:
            return


def check(real: dict[str, Any]) -> None:
    plan = real["plan"]
    steps = by_run_step(Estimate(**step) for step in plan["steps"])
    assert steps.keys() - WITHOUT_STEPS == real["steps"].keys()
    for name, took in real["steps"].items():
        expected = steps[name]
        if name not in OF_DUPLICATES:
            assert took["tasks"] / 2 <= expected.tasks <= 2 * took["tasks"] + 1, name
        for field in ("work_bytes", "out_bytes"):
            if took[field] > SMALL_BYTES and name not in OF_DUPLICATES:
                assert 0.6 <= getattr(expected, field) / took[field] <= 1.7, (name, field)
        if took["cpu_seconds"] > SMALL_SECONDS:
            assert 1 / 3 <= expected.cpu_seconds / took["cpu_seconds"] <= 3, name
    assert 0.7 <= plan["work_bytes"] / real["peak_work_bytes"] <= 1.5
    # The start is not in what was measured: the plan, made in the same process before, has loaded everything.
    of_steps = sum(step.cpu_seconds for step in steps.values() if step.step not in WITHOUT_STEPS)
    assert 1 / 2.5 <= of_steps / real["cpu_seconds"] <= 2.5
    assert 0.6 <= plan["memory_bytes"] / real["peak_memory_bytes"] <= 2.2


def workload(**assignments: object) -> Workload:
    recipe = load(
        None, {"source.name": ("sample", "test"), **{k: (v, "test") for k, v in assignments.items()}}
    )
    volume = Volume(100, 200, 3 * 10**9, 2 * 10**6, 10**10, 25 * 10**8)
    return Workload(volume, recipe.settings, recipe.run)


@pytest.mark.parametrize(
    "settings", [{"format": "sample"}, {"format": "corpus"}, {"format": "vsl"}, {"dedupe.index": "index"}]
)
def test_ten_times_as_much_takes_ten_times_as_much_of_everything_but_memory(settings: dict[str, str]) -> None:
    small = workload(**settings)
    large = small.scaled(10)
    pairs = {step.step: [step] for step in planning.estimates(small)}
    for step in planning.estimates(large):
        pairs.setdefault(step.step, []).append(step)
    for name, (one, ten) in ((name, pair) for name, pair in pairs.items() if len(pair) == 2):
        for field in ("documents", "source_bytes", "work_bytes", "out_bytes", "freed_bytes"):
            if name.startswith("pack") or name == "shuffle.scatter" or field == "freed_bytes":
                continue  # packed on disk, and tokens moved, only where the stream does not fit memory
            assert getattr(ten, field) == pytest.approx(10 * getattr(one, field), rel=0.01), (name, field)
        if name not in (
            "acquire",
            "acquire.listed",
            "tokenize",
            "shard.write",
            "pack.cut",
            "dedupe.cluster",
            "dedupe.table",
            "shuffle.scatter",
            "shard.beside",
        ):
            # One task that puts the lists together; tasks that look into more files take more at a time.
            assert ten.cpu_seconds == pytest.approx(10 * one.cpu_seconds, rel=0.25), name
        if one.tasks > 8 and name != "shuffle.scatter":
            assert ten.memory_bytes < 1.5 * one.memory_bytes, name
    assert {step.step for step in planning.estimates(large)} >= {"dedupe.split-bands", "dedupe.sort-bands"}


def test_a_step_of_one_task_takes_as_long_on_any_number_of_workers() -> None:
    assert Estimate("dedupe.cluster", tasks=1, cpu_seconds=60.0).seconds(64) == 60.0
    assert Estimate("read", tasks=100, cpu_seconds=60.0).seconds(10) == 6.0
    assert Estimate("tokenize", tasks=0).seconds(10) == 0.0


def test_what_is_done_among_the_tasks_of_a_step_is_in_its_sum() -> None:
    steps = [
        Estimate("shard.documents", 3, work_bytes=9),
        Estimate("shard.write", 4, out_bytes=50, memory_bytes=7, cpu_seconds=1.0),
        Estimate("shard.tables", 2, out_bytes=5, memory_bytes=9, cpu_seconds=2.0, is_beside=True),
        Estimate("shard.beside", 1, cpu_seconds=4.0, is_beside=True),
    ]
    assert by_run_step(steps) == {
        "shard.documents": steps[0],
        "shard.write": Estimate("shard.write", 7, out_bytes=55, memory_bytes=9, cpu_seconds=7.0),
    }


def test_sums_by_stage_and_the_most_that_lies_in_the_work_folder() -> None:
    steps = [
        Estimate("read", 4, documents=10, work_bytes=100, memory_bytes=5, cpu_seconds=1.0),
        Estimate(
            "dedupe.split", 2, documents=10, read_bytes=7, work_bytes=80, memory_bytes=9, cpu_seconds=2.0
        ),
        Estimate(
            "dedupe.sort", 3, documents=8, work_bytes=10, freed_bytes=80, memory_bytes=8, cpu_seconds=3.0
        ),
        Estimate("shard.write", 1, out_bytes=50),
    ]
    assert peak_work_bytes(steps) == 190
    assert peak_work_bytes([*steps, Estimate("x", 1, work_bytes=81)]) == 191
    sums = by_stage(steps)
    assert list(sums) == ["read", "dedupe", "shard"]
    assert sums["dedupe"] == Estimate(
        "dedupe",
        5,
        documents=10,
        read_bytes=7,
        work_bytes=90,
        freed_bytes=80,
        memory_bytes=9,
        cpu_seconds=5.0,
    )


def test_a_plan_holds_every_step_and_its_stages_sums() -> None:
    recipe = load(None, {"source.name": ("sample", "test"), "run.out": ("/nowhere", "test")})
    plan = planning.measure(recipe)
    assert plan.stages == tuple(by_stage(plan.steps).values())
    assert [stage.stage for stage in plan.stages] == [
        "acquire",
        "read",
        "dedupe",
        "holdout",
        "tokenize",
        "shuffle",
        "shard",
    ]
    assert plan.out_bytes == sum(stage.out_bytes for stage in plan.stages)
    assert json.loads(json.dumps(msgspec.to_builtins(plan)))["steps"][1]["step"] == "read"
