"""The arrows of the architecture, checked in the source; and that `--help` loads nothing heavy."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Layer -> what it may import of our own, by the first two parts of the name. A layer may always import itself.
GROUND = {
    "errors",
    "redact",
    "task",
    "recipe",
    "seeding",
    "advance",
    "estimate",
    "fingerprint",
    "splits",
    "wording",
    "mix_plan",
    "threads",
}
# What a work function may use besides its stage: the files of its task, their formats, the stores.
WORK = GROUND | {"storage", "formats", "task_files", "blocks", "fates", "kernels"}
MAY_IMPORT = {
    "errors": set(),
    "terminal": {"errors", "redact"},
    "entry": {"errors", "redact", "terminal", "witness"},
    "witness": set(),
    "redact": set(),
    "task": {"task_files"},  # for a type only
    "estimate": {"recipe", "records.base"},
    "wording": set(),
    "mix_plan": {"errors", "recipe", "seeding"},
    "advance": {"witness"},
    "seeding": set(),
    "threads": set(),
    "fingerprint": set(),
    "straining": set(),
    "splits": set(),
    "fates": set(),
    "recipe": {"errors", "redact", "splits", "entry", "formats.shard_formats.FORMATS"},
    "progress": GROUND,
    "tokenizer": {"errors", "straining", "storage.retry"},
    "cleaning": {
        "errors",
        "straining",
        "kernels",
        "fingerprint",
        "formats",
        "records.fields",
        "recipe.filter_entries",
        "recipe.validation",
    },
    "kernels": {"errors"},
    "storage": {"errors", "redact"},
    "formats": GROUND | {"kernels", "storage"},
    "records": {"advance", "errors", "formats.parquet_footer", "formats.thrift_compact"},
    "sources": GROUND | {"formats.dataset", "records", "storage", "terminal", "wording"},
    "locations": {"storage", "task"},
    "task_files": {"errors", "formats.columns", "locations", "storage", "task"},
    "blocks": {"storage", "task", "task_files"},
    "by_group": WORK | {"engine.runner"},
    "by_ordinal": {"by_group", "errors", "storage", "task", "task_files"},
    "dedupe": WORK | {"by_group", "by_ordinal", "engine.runner", "locations"},
    "stages": WORK
    | {"by_group", "by_ordinal", "cleaning", "records", "sources", "tokenizer", "dedupe", "engine.runner"},
    "engine": GROUND | {"formats.columns", "locations", "storage", "task_files", "witness"},
    "work_folder": {"errors", "storage"},
    "output_folder": {"errors", "formats", "splits", "storage", "task", "task_files"},
    "preparation": WORK
    | {"cleaning", "engine.runner", "output_folder", "records", "sources", "stages", "tokenizer"},
    "input_checks": {
        "errors",
        "preparation",
        "records",
        "sources",
        "stages.block_writer",
        "stages.rejected",
        "task",
        "engine.base",
        "recipe",
        "wording",
    },
    "finish": WORK | {"cleaning", "preparation", "sources", "stages"},
    "pipeline": WORK
    | {
        "engine",
        "finish",
        "input_checks",
        "locations",
        "output_folder",
        "preparation",
        "records",
        "sources",
        "stages",
    }
    | {"work_folder"},
    "generations": WORK
    | {
        "stages.ready",
        "engine",
        "lineage",
        "locations",
        "output_folder",
        "pipeline",
        "preparation",
        "tokenizer",
        "work_folder",
    }
    | {"dedupe"},
    "planning": WORK
    | {"input_checks", "pipeline", "locations", "plan_checks", "preparation", "sources", "stages"},
    "cluster_plan": {"errors", "estimate", "wording"},
    "run_cost": {"errors", "estimate", "formats", "planning", "recipe", "wording"},
    "plan_checks": {
        "cleaning",
        "errors",
        "input_checks",
        "mix_plan",
        "pipeline",
        "locations",
        "preparation",
        "stages.block_writer",
        "stages.rejected",
        "storage",
        "task",
        "wording",
        "work_folder",
    },
    "lineage": GROUND
    | {
        "formats",
        "kernels",
        "storage",
        "terminal",
        "tokenizer",
        "cleaning.normalize",
        "cleaning.evaluation_ngrams",
        "cleaning.evaluation_sets",
        "stages.pack.packing_of",
    },
    "inspection": GROUND
    | {
        "storage",
        "lineage.masks",
        "lineage.overlap",
        "lineage.split_view",
        "lineage.key_index",
        "lineage.text_index",
        "terminal",
        "records",
        "cleaning",
        "formats",
        "kernels",
        "tokenizer",
        "stages",
        "pipeline",
        "dedupe.report",
    },
    "export": GROUND | {"formats", "storage"},
    "serve": {
        "engine.status",
        "errors",
        "terminal",
        "formats",
        "inspection",
        "kernels",
        "lineage",
        "pages",
        "recipe.recorded",
        "storage.open_store",
        "tokenizer",
        "wording",
    },
    "hub_upload": {"errors", "formats"},
    "pages": {"errors", "terminal", "formats", "inspection", "output_folder", "storage"},
    "commands": {
        "stages.ready",
        "entry",
        "generations",
        "splits",
        "sources.corpora",
        "terminal",
        "errors",
        "lineage",
        "recipe",
        "progress",
        "pipeline",
        "planning",
        "cluster_plan",
        "run_cost",
        "inspection",
        "pages",
        "hub_upload",
        "serve",
        "export",
        "engine",
        "dedupe.curve",
        "dedupe.report",
        "kernels",
        "run_status",
        "storage.open_store",
        "wording",
        "formats.dataset.FILE_NAME",
    },
    "cli": {"commands", "entry"},
    "run_status": {"engine.status", "errors", "storage", "terminal", "wording"},
    "__main__": {"cli", "process"},
    "process": set(),
    "api": {"errors", "formats", "recipe", "storage", "pages", "pipeline", "engine.runner"},
    "__init__": {"kernels", "api"},
}
FROM_TRAINER = {
    "btlm_data.errors",
    "btlm_data.terminal",
    "btlm_data.entry",
    "btlm_data.formats",
    "btlm_data.tokenizer",
    "btlm_data.recipe.yaml_file",
    "btlm_data.recipe.models.Size",
    "btlm_data.recipe.validation",
    "btlm_data.redact",
    "btlm_data.storage",
    "btlm_data.lineage",
}


def _imports(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


@pytest.mark.parametrize(
    "path", sorted((ROOT / "btlm_data").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_arrows_go_one_way(path: Path) -> None:
    parts = path.relative_to(ROOT / "btlm_data").with_suffix("").parts
    layer = parts[0]
    allowed = MAY_IMPORT[layer] | {layer}
    for line, name in _imports(path):
        assert not name.startswith("btlm_train"), f"{path}:{line}: btlm_data must not know the trainer"
        if name.startswith("btlm_data."):
            target = name.removeprefix("btlm_data.")
            assert any(target == a or target.startswith(f"{a}.") for a in allowed), (
                f"{path}:{line}: {layer} must not import {name}"
            )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "btlm_train").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_trainer_knows_formats_and_errors_only(path: Path) -> None:
    for line, name in _imports(path):
        if name.startswith("btlm_data"):
            assert any(name == a or name.startswith(f"{a}.") for a in FROM_TRAINER), f"{path}:{line}: {name}"


@pytest.mark.parametrize("command", ["btlm_data.cli", "btlm_train.cli"])
def test_help_loads_nothing_heavy(command: str) -> None:
    code = f"""
import atexit, sys
sys.argv = ["x", "--help"]
from {command} import main
heavy = {{"torch", "ray", "numba", "h5py", "pyarrow", "pydantic", "numpy", "tokenizers", "huggingface_hub"}}
atexit.register(lambda: print("LOADED", sorted(heavy & set(sys.modules)), flush=True))
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_looking_loads_no_compiler(tmp_path: Path) -> None:
    """Who looks at a dataset, or up where something is, waits for what that takes and no more."""
    dataset = tmp_path / "dataset"
    made = [sys.executable, "-m", "btlm_data", "-q", "prepare", "--source", "sample", "--seq-len", "256"]
    subprocess.run([*made, "--limit", "50", "--out", dataset], check=True, capture_output=True)
    code = """
import sys
from click.testing import CliRunner
from btlm_data.cli import cli
for arguments in (["inspect"], ["inspect", "--prefix", "10%"], ["trace", "--sample", "2"], ["trace", "--hash", "0" * 32]):
    done = CliRunner().invoke(cli, [arguments[0], sys.argv[1], *arguments[1:]])
    assert done.exit_code == 0, (arguments, done.output, done.exception)
    print(arguments[0], sorted({"numba", "pandas", "scipy", "pydantic", "torch"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, dataset], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines() == ["inspect []", "inspect []", "trace []", "trace []"]


def test_kernels_neither_log_nor_read() -> None:
    for path in (ROOT / "btlm_data" / "kernels").glob("*.py"):
        if path.name in ("compiling.py", "compiled_forms.py"):  # where compiled kernels are kept
            continue
        names = {name.split(".")[0] for _, name in _imports(path)}
        assert not names & {"logging", "os", "pathlib", "io"}, path


def test_no_pickle_and_no_unsafe_yaml_anywhere() -> None:
    for folder in ("btlm_data", "btlm_train", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert "pickle.load" not in text, path
            assert "yaml.load(" not in text, path
            assert "yaml.safe_load(" not in text, f"{path}: recipe/yaml_file.py reads YAML"
            assert "weights_only=False" not in text, path


def test_the_picture_of_the_architecture_names_what_is_there() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    picture = page.split("```")[1]
    rooms = set(re.findall(r"\b([a-z_]+(?:/|\.py))", picture))
    assert len(rooms) > 20
    missing = [room for room in sorted(rooms) if not (ROOT / "btlm_data" / room).exists()]
    assert [room for room in missing if not (ROOT / "btlm_data/formats" / room).exists()] == []
    packages = {f"{path.name}/" for path in (ROOT / "btlm_data").iterdir() if (path / "__init__.py").exists()}
    assert packages - rooms == set(), "every package is in the picture"


def test_a_file_has_one_job() -> None:
    """600 lines are too many for one."""
    long = {
        str(path.relative_to(ROOT)): lines
        for package in ("btlm_data", "btlm_train")
        for path in (ROOT / package).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 600
    }
    assert not long
