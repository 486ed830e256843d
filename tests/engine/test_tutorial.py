"""The page "From a laptop to a cluster": its commands are run as printed, and what it points at is what it says."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from btlm_data.cli import cli
from btlm_data.engine.site import Site, read_site
from tests import slurm
from tests.engine.disturbed import ROOT, contents, wait_for

PAGE = ROOT / "docs/cluster.md"
PROGRAM = [sys.executable, "-m", "btlm_data"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def printed() -> dict[str, list[list[str]]]:
    """The commands of each section of the page, by its heading."""
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.M)[1:]
    return {
        section.partition("\n")[0]: [
            shlex.split(line)[1:] for line in re.findall(r"^    (btlm-data .*)$", section, re.M)
        ]
        for section in sections
    }


def run(words: list[str], folder: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, *words], cwd=folder, capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 0, (words, done.stderr)


def test_the_commands_of_the_page_give_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("parsl")
    alone, free, ray, pilots = printed().values()
    for words in alone:
        run(words, tmp_path)
    expected = contents(tmp_path / "shards")
    driving, working = free
    (tmp_path / "shared").mkdir()
    driver = subprocess.Popen([*PROGRAM, *driving], cwd=tmp_path, env=ENVIRONMENT)
    with contextlib.ExitStack() as stack:
        stack.callback(driver.kill)
        wait_for((tmp_path / "shared/shards/.work/engine/board.json").exists, 120)
        run(working, tmp_path)
        assert driver.wait(timeout=120) == 0
    assert contents(tmp_path / "shared/shards") == expected
    shutil.copy(ROOT / "examples/site.yaml", tmp_path)
    for commands in (ray, pilots):
        shutil.rmtree(tmp_path / "shared")
        [words] = commands
        run(words, tmp_path)
        assert contents(tmp_path / "shared/shards") == expected


def test_each_example_of_the_site_file_is_one(tmp_path: Path) -> None:
    pytest.importorskip("parsl")
    text = (ROOT / "examples/site.yaml").read_text()
    first, *others = re.split(r"^# (?=Slurm$|PBS Pro$|LSF$|Kubernetes$)", text, flags=re.M)
    assert len(others) == 4
    for number, example in enumerate([first, *others]):
        lines = example.splitlines()[1:] if number else example.splitlines()
        body = "\n".join(line.removeprefix("# ") for line in lines) if number else first
        file = tmp_path / f"{number}.yaml"
        file.write_text(body + "\n")
        site = read_site(str(file))
        if site.provider != "kubernetes":  # its client is a package of its own
            assert site.make_provider() is not None
    table = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", PAGE.read_text(), re.M)
    named = {name for pair in table for name in pair if name}
    assert set(Site.model_fields) <= named


def check_worker(line: str) -> None:
    """A command line of a worker, as a script has it."""
    words = shlex.split(line.removeprefix("exec "))
    assert words[:2] == ["btlm-data", "worker"]
    words = [word if not word.startswith("$") else "3" for word in words[2:]]
    cli.commands["worker"].make_context("worker", words, parent=click.Context(cli))


def test_the_kubernetes_job_is_well_formed_and_runs_a_worker() -> None:
    job = yaml.load((ROOT / "examples/workers.yaml").read_text(), yaml.SafeLoader)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed", "or there is no JOB_COMPLETION_INDEX"
    assert spec["completions"] == spec["parallelism"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "backoffLimitPerIndex requires it"
    [container] = pod["containers"]
    assert container["command"] == ["sh", "-c"]
    [line] = container["args"]
    assert f"--world {spec['completions']}" in line
    check_worker(line)


def test_the_array_job_runs_on_a_real_slurm(tmp_path: Path) -> None:
    script = (ROOT / "examples/workers.sbatch").read_text()
    check_worker(script.splitlines()[-1])
    if (reason := slurm.missing()) is not None:
        pytest.skip(reason)
    # Two of the 64, each of less memory; the environment that a user's shell would have.
    small = script.replace("0-63", "0-1").replace("--mem=2G", "--mem=500M")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    program = bin_folder / "btlm-data"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m btlm_data "$@"\n')
    program.chmod(0o755)
    (tmp_path / "workers.sbatch").write_text(small)
    out = tmp_path / "out"
    with slurm.running(tmp_path / "slurm") as environment:
        path = f"{bin_folder}:{environment['PATH']}"
        submit = ["sbatch", "--export=ALL", "workers.sbatch", str(out / ".work")]
        submitted = {**ENVIRONMENT, **environment, "PATH": path}
        subprocess.run(submit, cwd=tmp_path, env=submitted, check=True, capture_output=True)
        words = [
            "prepare",
            "--source",
            "sample",
            "--seq-len",
            "512",
            "--out",
            str(out),
            "--engine",
            "workers",
        ]
        run(words, tmp_path)
    assert (out / "dataset.json").exists()
    logs = [path.read_text() for path in tmp_path.glob("slurm-*.out")]
    assert len(logs) == 2
