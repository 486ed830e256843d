"""Signatures by the system's ssh-keygen: of this very dataset.json, for this purpose, by whom one trusts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from btlm_data.errors import ConfigError, DataError
from btlm_data.inspection import signature
from btlm_data.inspection.check import Check
from btlm_data.inspection.verify import verify
from tests.reference import dataset

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(tmp_path / "key")]
    subprocess.run(command, check=True)
    return tmp_path / "key"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    dataset.write(tmp_path / "shards", {"train": dataset.documents(9, "train")})
    return tmp_path / "shards"


def signers(key: Path, name: str = "me@example.org") -> Path:
    path = key.with_name("signers")
    path.write_text(f'{name} namespaces="{signature.NAMESPACE}" {key.with_suffix(".pub").read_text()}')
    return path


def check(root: Path, allowed: Path | None = None) -> Check | None:
    checks = verify(root, lambda check: None, signers=allowed)
    return next((check for check in checks if check.name == "signature"), None)


def test_a_signature_is_checked_by_verify(root: Path, key: Path) -> None:
    assert check(root) is None
    missing = check(root, signers(key))
    assert missing is not None
    assert missing.ok is False
    for part in (root / "train", root / "train/data-00000.h5"):  # asked for, it is never left out
        unsigned = check(part, signers(key))
        assert unsigned is not None
        assert unsigned.ok is False
    assert signature.sign(root, key) == root / "dataset.json.sig"
    known = check(root, signers(key))
    assert known == Check("signature", True, "of me@example.org")
    unknown = check(root)
    assert unknown is not None
    assert unknown.ok
    assert "--signers" in unknown.detail


def test_another_dataset_or_another_key_is_noticed(root: Path, key: Path, tmp_path: Path) -> None:
    signature.sign(root, key)
    allowed = signers(key)
    dataset.edit_manifest(root, lambda m: m.update(dedupe={}))
    for found in (check(root), check(root, allowed)):
        assert found is not None
        assert found.ok is False
    (tmp_path / "others").mkdir()
    other = tmp_path / "others" / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    signature.sign(root, other)
    found = check(root, allowed)
    assert found is not None
    assert found.ok is False
    assert "none of the signers" in found.detail


def test_a_signature_for_another_purpose_does_not_count(root: Path, key: Path) -> None:
    data = (root / "dataset.json").read_bytes()
    command = ["ssh-keygen", "-Y", "sign", "-q", "-f", str(key), "-n", "file"]
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    (root / "dataset.json.sig").write_bytes(done.stdout)
    found = check(root)
    assert found is not None
    assert found.ok is False


def test_what_cannot_be_signed_or_read_is_said(root: Path, key: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no key"):
        signature.sign(root, tmp_path / "nokey")
    with pytest.raises(ConfigError, match="cannot sign"):
        signature.sign(root, root / "dataset.json")
    os.mkfifo(root / "dataset.json.sig")
    found = check(root)
    assert found is not None
    assert found.ok is False
    (root / "dataset.json").write_text("{")
    with pytest.raises(DataError):
        signature.sign(root, key)
