"""A typo is told from damage: 2 and 3 for what the user named wrongly, 1 for what is broken, in every command."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from btlm_data import entry
from btlm_data.cli import cli
from btlm_train.cli import cli as trainer
from tests.cases.model import byte_tokenizer, lines

USAGE, INPUT, OUTPUT, DAMAGE = 2, 3, 4, 1
TINY = "params_btlm_tiny_2k.yaml"
TABLE = [
    (OUTPUT, "prepare --source corpus --out file.txt"),
    (OUTPUT, "prepare --source corpus --out bad_json"),
    (INPUT, "prepare --source none"),
    (USAGE, "prepare --source corpus --config none.yaml"),
    (USAGE, "prepare --source corpus --sources-file none.yaml"),
    (USAGE, "prepare --source corpus --tokenizer none.json"),
    (USAGE, "prepare --source corpus --dedupe mihash"),
    (USAGE, "prepare --source corpus --stop-after shrd"),
    (USAGE, "prepare --source corpus --set holdout.decontaminate=[none.jsonl]"),
    (USAGE, "prepar"),
    (USAGE, "run none.yaml"),
    (USAGE, "run bad.yaml"),
    (USAGE, "run typo.yaml"),
    (INPUT, "inspect none"),
    (INPUT, "inspect empty"),
    (INPUT, "inspect file.txt"),
    (USAGE, "inspect good --split tran"),
    (USAGE, "inspect good --sample 99999"),
    (INPUT, "verify none"),
    (INPUT, "verify empty"),
    (INPUT, "verify file.txt"),
    (INPUT, "verify good --source none"),
    (INPUT, "verify good --signers none"),
    (USAGE, "verify good --deep 3"),
    (DAMAGE, "verify flipped"),
    (DAMAGE, "verify cut"),
    (DAMAGE, "verify bad_json"),
    (DAMAGE, "verify junk.h5"),
    (INPUT, "export none --to npy --out x"),
    (INPUT, "export empty --to npy --out x"),
    (USAGE, "export good --to np --out x"),
    (USAGE, "export good --to npy --split tran --out x"),
    (OUTPUT, "export good --to npy --out file.txt"),
    (DAMAGE, "export flipped --to npy --out x1"),
    (DAMAGE, "export cut --to npy --out x2"),
    (DAMAGE, "export bad_json --to npy --out x3"),
    (INPUT, "sign none --key none"),
    (INPUT, "sign empty --key none"),
    (USAGE, "sign good --key none"),
    (DAMAGE, "sign bad_json --key none"),
    (USAGE, "dedupe-curve --bands 0"),
    (INPUT, "dedupe-report none"),
    (INPUT, "dedupe-report empty"),
    (USAGE, "dedupe-report good --threshold 2"),
    (0, "diff good good"),
    (INPUT, "diff none good"),
    (INPUT, "diff good empty"),
    (INPUT, "diff good file.txt"),
    (DAMAGE, "diff good bad_json"),
    (INPUT, "forget none --id a"),
    (INPUT, "forget empty --id a"),
    (INPUT, "forget good --list none"),
    (INPUT, "forget good --id a --run none"),
    (USAGE, "forget good"),
    (DAMAGE, "forget bad_json --id a"),
    (INPUT, "push none hf://datasets/a/b"),
    (INPUT, "push empty hf://datasets/a/b"),
    (USAGE, "push good s3://a/b"),
    (DAMAGE, "push bad_json hf://datasets/a/b"),
    (INPUT, "serve none"),
    (INPUT, "serve empty --port 0"),
    (INPUT, "serve file.txt --port 0"),
    (USAGE, "serve good --port 99999"),
    (0, "status good/.work"),
    (INPUT, "status none"),
    (INPUT, "status file.txt"),
    (0, "trace good --sample 0"),
    (0, "trace good/train --sample 0"),
    (INPUT, "trace none --sample 0"),
    (INPUT, "trace empty --sample 0"),
    (INPUT, "trace good --list none"),
    (INPUT, "trace good --sample 0 --run none"),
    (USAGE, "trace good"),
    (USAGE, "trace good --sample 99999"),
    (USAGE, "trace good --row x.h5:0"),
    (USAGE, "trace good --row data-00000.h5:99999"),
    (USAGE, "trace good --tokens 99999-999999"),
    (USAGE, "trace good --split tran --sample 0"),
    (DAMAGE, "trace bad_json --sample 0"),
    (DAMAGE, "trace cut --sample 0"),
    (INPUT, "worker none --idle 0"),
    (INPUT, "worker file.txt --idle 0"),
    (USAGE, "inspect good --similarity 0.8-0.9"),
    (USAGE, "inspect good --duplicates --similarity x"),
    (OUTPUT, "inspect good --html none/x.html"),
]
TRAINER = [
    (USAGE, "run --params none.yaml --mode train"),
    (USAGE, f"run --params {TINY} --mode tran"),
    (USAGE, "run --params bad.yaml --mode train"),
    (USAGE, f"run --params {TINY} --mode train --model-dir m --set optimzer.learning_rate=1"),
    (USAGE, f"run --params {TINY} --mode train --model-dir m --set train_input.data_dir=none"),
    (INPUT, f"run --params {TINY} --mode train --model-dir m --set train_input.data_dir=empty"),
    (DAMAGE, f"run --params {TINY} --mode train --model-dir m --set train_input.data_dir=cut/train"),
    (USAGE, "export none --to hf --out x"),
    (USAGE, "export empty --to hf --out x"),
    (USAGE, "import none --model-dir x"),
    (USAGE, "import empty --model-dir x"),
    (USAGE, "generate --model-dir none"),
    (USAGE, "generate --model-dir empty"),
    (USAGE, "eval-lengths --model-dir none --data good --out x"),
    (USAGE, "eval-lengths --model-dir empty --data none --out x"),
    (USAGE, "eval-lengths --model-dir empty --data good --out x --lengths x"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good dataset, damaged copies of it, and other things that one may name."""
    folder = tmp_path_factory.mktemp("exit-codes")
    (folder / "corpus").mkdir()
    (folder / "corpus/a.jsonl").write_bytes(lines(range(30)))
    (folder / "empty").mkdir()
    (folder / "file.txt").write_text("x")
    (folder / "junk.h5").write_bytes(b"junk")
    (folder / "bad.yaml").write_text("source: [\n")
    (folder / "typo.yaml").write_text("source: corpus\nsead: 3\n")
    tokenizer = byte_tokenizer(folder / "tokenizer.json")
    arguments = ["prepare", "--source", str(folder / "corpus"), "--out", str(folder / "good")]
    arguments += ["--workers", "1", "--seq-len", "64", "--tokenizer", tokenizer]
    assert entry._exit_code(cli, arguments) == 0
    for name in ("flipped", "cut", "bad_json"):
        shutil.copytree(folder / "good", folder / name)
    for name in ("flipped", "cut"):
        path = next((folder / name / "train").glob("*.h5"))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data if name == "flipped" else data[:900])
    (folder / "bad_json/dataset.json").write_text('{"format_version": 2,')
    return folder


@pytest.mark.parametrize(("code", "command"), TABLE, ids=lambda value: str(value))
def test_exit_code(code: int, command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert entry._exit_code(cli, command.split()) == code


@pytest.mark.parametrize(("code", "command"), TRAINER, ids=lambda value: str(value))
def test_exit_code_of_the_trainer(
    code: int, command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(folder)
    assert entry._exit_code(trainer, command.split()) == code
