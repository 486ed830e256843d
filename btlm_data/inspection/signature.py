"""Sign a dataset, and check a signature: an SSH signature of dataset.json, whose checksums cover every other
file.

The signature is detached, in `dataset.json.sig`, and made by the system's ssh-keygen (`-Y sign`,
PROTOCOL.sshsig of OpenSSH) in a namespace of our own, so that a signature made for another purpose is never
taken for one of a dataset. In a folder of several sets the upper dataset.json is signed: it has the checksums
of those of the sets. Where documents were added, generations.json is signed too, which has those of the
generations. The certificates of documents that were taken out (forgotten.json) can be signed
themselves, to be sent to whoever asked; dataset.json covers them too.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from btlm_data.errors import ConfigError, DataError
from btlm_data.formats import dataset, forgotten, generations
from btlm_data.formats.guarded import require_regular
from btlm_data.formats.sealed_json import read_small
from btlm_data.inspection.check import Check, Report
from btlm_data.storage import open_store

NAMESPACE = "dataset@btlm-data"
FILE_NAME = f"{dataset.FILE_NAME}.sig"
MAX_SIGNATURE_BYTES = 1 << 16
_TIMEOUT = 30  # seconds for a check; signing may wait for a passphrase


def sign(folder: Path, key: Path, name: str = dataset.FILE_NAME) -> Path:
    """Sign the dataset in `folder` with an SSH key, or another of its files; returns the signature's path.

    key: a private key, or a public one whose private part an agent holds. Raises DataError if there is no
    sound dataset.json, ConfigError if the key cannot be used, OutputError if the signature cannot be written.
    """
    dataset.read(folder)
    if not key.is_file():
        raise ConfigError(
            f"There is no key {key}. Make one with `ssh-keygen -t ed25519`, and name it with --key."
        )
    done = _run(["-Y", "sign", "-q", "-f", str(key), "-n", NAMESPACE], (folder / name).read_bytes())
    if done.returncode != 0 or not done.stdout.startswith(b"-----BEGIN SSH SIGNATURE-----"):
        raise ConfigError(f"The key {key} cannot sign: {_words(done)}. Name another with --key.")
    signature = f"{name}.sig"
    open_store(folder).write(signature, done.stdout)  # a link there is replaced, not followed
    return folder / signature


def sign_dataset(folder: Path, key: Path) -> Path:
    """Sign the dataset in `folder`, every generation of it; returns the signature of the whole. Raises as
    `sign`.
    """
    entries = generations.listed(folder)
    for entry in entries:
        sign(folder / entry.folder, key)
    return sign(folder, key, generations.FILE_NAME if entries else dataset.FILE_NAME)


def sign_forgotten(folder: Path, key: Path) -> None:
    """Sign the dataset in `folder`, and the certificates that it has. Raises as `sign`."""
    for generation in generations.read(folder):
        for name in dataset.read_sets(generation.root):
            if (generation.root / name / forgotten.FILE_NAME).exists():
                sign(generation.root / name, key, forgotten.FILE_NAME)
    sign_dataset(folder, key)


def check_signature(folder: Path, signers: Path | None, tell: Report) -> None:
    """Compare `dataset.json.sig` with dataset.json; where there is none, that fails only if signers are
    named.

    signers: whose signatures count, in the form of `allowed_signers` (ssh-keygen(1)). Raises ConfigError if
    they are named and cannot be used.
    """
    path = folder / FILE_NAME
    if not path.exists():
        if signers is not None:
            tell(Check("signature", False, "not signed", f"{path}: missing"))
        return
    _tell(folder, dataset.FILE_NAME, signers, tell)


def check_certificates(folder: Path, signers: Path | None, tell: Report) -> None:
    """Compare `forgotten.json.sig` with forgotten.json, where there is one. signers: as for
    check_signature.
    """
    if (folder / f"{forgotten.FILE_NAME}.sig").exists():
        _tell(folder, forgotten.FILE_NAME, signers, tell)


def check_generations(folder: Path, signers: Path | None, tell: Report) -> None:
    """Compare `generations.json.sig` with generations.json; where there is none, that fails only if signers are
    named. signers: as for check_signature.
    """
    if (folder / f"{generations.FILE_NAME}.sig").exists():
        _tell(folder, generations.FILE_NAME, signers, tell)
    elif signers is not None:
        tell(Check("signature", False, "not signed", f"{generations.FILE_NAME}.sig: missing"))


def _tell(folder: Path, name: str, signers: Path | None, tell: Report) -> None:
    path = folder / f"{name}.sig"
    try:
        require_regular(path)
        read_small(path, MAX_SIGNATURE_BYTES)
        tell(_check(folder / name, path, signers))
    except DataError as error:
        tell(Check("signature", False, "cannot be read", str(error)))
    except ConfigError as error:
        if signers is not None:  # a signature was required: not to be able to check it is no pass
            raise
        tell(Check("signature", None, f"not made: {error}"))


def _check(signed: Path, path: Path, signers: Path | None) -> Check:
    data = read_small(signed, max(dataset.MAX_BYTES, forgotten.MAX_BYTES))
    about = ["-n", NAMESPACE, "-s", str(path)]
    if signers is None:
        done = _run(["-Y", "check-novalidate", *about], data)
        if done.returncode == 0:
            return Check(
                "signature", True, f"{_words(done)}; whose key that is, is known only with --signers FILE"
            )
        return Check("signature", False, f"is not one of this {signed.name}", f"{path.name}: {_words(done)}")
    if not signers.is_file():
        raise ConfigError(f"There is no file of signers {signers}. Check the path given to --signers.")
    result = _run(["-Y", "find-principals", "-s", str(path), "-f", str(signers)], data)
    names = result.stdout.decode(errors="replace").splitlines()
    if result.returncode != 0 or not names:
        return Check(
            "signature", False, f"is of none of the signers in {signers}", f"{path.name}: {_words(result)}"
        )
    done = _run(["-Y", "verify", "-f", str(signers), "-I", names[0], *about], data)
    if done.returncode == 0:
        of_file = "" if signed.name == dataset.FILE_NAME else f" of {signed.name}"
        return Check(f"signature{of_file}", True, f"of {names[0]}")
    return Check("signature", False, f"is not one of this {signed.name}", f"{path.name}: {_words(done)}")


def _run(arguments: Sequence[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
    """Raises ConfigError where there is no ssh-keygen, or one that does not answer."""
    try:
        return subprocess.run(
            ["ssh-keygen", *arguments],
            input=data,
            capture_output=True,
            check=False,
            timeout=None if "sign" in arguments else _TIMEOUT,
        )
    except FileNotFoundError:
        raise ConfigError(
            "ssh-keygen (OpenSSH 8.2 or newer) is not installed. Install it for signatures."
        ) from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"ssh-keygen did not answer in {_TIMEOUT} seconds.") from None


def _words(done: subprocess.CompletedProcess[bytes]) -> str:
    text = (done.stdout + done.stderr).decode(errors="replace").strip()
    return text.splitlines()[0] if text else f"ssh-keygen ended with {done.returncode}"
