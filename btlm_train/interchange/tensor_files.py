"""Tensors from files of every kind that BTLM checkpoints come in, without running code and within bounds.

    X.safetensors, model.safetensors.index.json   read by safetensors
    pytorch_model.bin, its index, X.pt            torch.load(weights_only=True), the archive being checked
    X.mdl                                         the Model Zoo's older HDF5 form, or a torch archive

No pickle is executed: `weights_only` builds tensors and plain containers, and nothing else.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from torch import Tensor

from btlm_data.errors import ConfigError, DataError
from btlm_data.formats.shard_formats.byte_source import LocalFile
from btlm_data.formats.shard_formats.hdf5_file import Damaged, NotPlain
from btlm_data.formats.shard_formats.hdf5_head import LZ4
from btlm_data.formats.shard_formats.hdf5_members import Member, read_members
from btlm_data.formats.shard_formats.reader import ShardReader
from btlm_train.checkpoint import read_tensors
from btlm_train.files import read_json_object

_CANDIDATES = (
    "model.safetensors", "model.safetensors.index.json", "checkpoint.safetensors", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "checkpoint.mdl",
)  # fmt: skip
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.(safetensors|bin)")
MAX_TENSORS = 100_000
MAX_FILES = 2_000
MAX_PICKLE_BYTES = 2**26  # names and shapes of 10^5 tensors take 2**24
_BFLOAT16 = 15  # in `rtfx_dtypes`, where releases since 2.3 say the type
_KINDS = (".safetensors", ".bin", ".pt", ".pth", ".mdl", ".index.json")


def read_state(path: Path) -> tuple[dict[str, Tensor], Path]:
    """The tensors of a folder or file by the names they have there, and the folder their configuration lies
    in.

    Raises ConfigError if nothing that can be read is there, DataError if a file is damaged or is not what it
    should be.
    """
    file = path
    if path.is_dir():
        file = next((path / name for name in _CANDIDATES if (path / name).is_file()), path)
    if not file.is_file() or not file.name.endswith(_KINDS):
        raise ConfigError(
            f"There are no weights at {path}. Give a folder with model.safetensors or pytorch_model.bin "
            "(or their .index.json), or a .safetensors, .bin, .pt or .mdl file."
        )
    state = _read_index(file) if file.name.endswith(".index.json") else _read_file(file)
    if len(state) > MAX_TENSORS:
        raise DataError(
            f"{file} holds {len(state):,} tensors, more than any BTLM has. It is of another model."
        )
    for name, tensor in state.items():
        _check_tensor(name, tensor, file)
    return state, file.parent


def _read_file(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return read_tensors(file)
    with file.open("rb") as opened:
        magic = opened.read(8)
    if magic == b"\x89HDF\r\n\x1a\n":
        return _read_hdf5(file)
    return _read_torch(file)


def _read_index(file: Path) -> dict[str, Tensor]:
    """A sharded checkpoint: {"weight_map": {tensor name: file name}}; the files lie beside the index."""
    weight_map = read_json_object(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataError(
            f"{file} has no weight_map, which says in which file each tensor is. Download it again."
        )
    names = set()
    for tensor_name, name in weight_map.items():
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise DataError(
                f"{file} names the file {str(name)[:100]!r} for {tensor_name[:100]!r}. "
                "Only plain names of .safetensors or .bin files beside it are read."
            )
        names.add(name)
    if len(names) > MAX_FILES:
        raise DataError(f"{file} names {len(names):,} files, more than any BTLM has. It is of another model.")
    state: dict[str, Tensor] = {}
    for name in sorted(names):
        part = file.parent / name
        if not part.is_file():
            raise DataError(f"{part} is missing: {file.name} names it. Download it again.")
        for tensor_name, tensor in _read_file(part).items():
            if weight_map.get(tensor_name) != name:
                raise DataError(
                    f"{part} holds the tensor {tensor_name[:200]!r}, which {file.name} does not place there. "
                    "Download both again."
                )
            state[tensor_name] = tensor
    if missing := sorted(set(weight_map) - set(state)):
        raise DataError(
            f"{file.name} names the tensor {missing[0][:200]!r}, and no file holds it. Download them again."
        )
    return state


def _read_torch(file: Path) -> dict[str, Tensor]:
    """A file of torch.save. Archives that are compressed, or larger unpacked than stored, are refused before
    torch opens them.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{file} is torn, or not an archive that torch.save of PyTorch 1.6 or later writes ({error}). "
            "Copy it again, or convert it to safetensors with the program that wrote it."
        ) from None
    size = file.stat().st_size
    unpacked = sum(entry.file_size for entry in entries)
    pickles = [entry.file_size for entry in entries if entry.filename.endswith("data.pkl")]
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or unpacked > size:
        raise DataError(f"{file} is a compressed archive, which torch.save does not write. It is not read.")
    if len(pickles) != 1 or pickles[0] > MAX_PICKLE_BYTES:
        raise DataError(f"{file} holds no table of tensors, or one of an impossible size. Copy it again.")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises what its reader and unpickler raise: a dozen kinds
        raise DataError(
            f"{file} cannot be read as plain tensors "
            f"({str(error).splitlines()[0][:200] if str(error) else type(error).__name__}). "
            "Only tensors are loaded, never code; convert it to safetensors with the program that wrote it."
        ) from None
    return _flat(loaded, file)


def _flat(loaded: Any, file: Path) -> dict[str, Tensor]:
    """The state dict of a torch file: itself, or below `model` or `state_dict`."""
    for key in ("model", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise DataError(
            f"{file} holds no state dict, but a {type(loaded).__name__}. Save model.state_dict()."
        )
    state = {}
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise DataError(
                f"{file} holds {str(name)[:100]!r} of type {type(value).__name__}, expected tensors by name. "
                "Save model.state_dict()."
            )
        state[name] = value
    return state


def _read_hdf5(file: Path) -> dict[str, Tensor]:
    """The Model Zoo's HDF5 checkpoints: a dataset `model.NAME` for each tensor, bfloat16 as 16-bit integers.

    Read by our own parser, without the HDF5 library: layouts that read other files (external storage, virtual
    datasets, links), unknown filters, and addresses or sizes that the file cannot have are refused. LZ4 is the
    default there. Source: cerebras-appliance and cerebras-pytorch 2.10, whose own files were tried.
    """
    source = LocalFile(file)
    try:
        state: dict[str, Tensor] = {}
        for key, member in read_members(source, _is_of_the_model, frozenset({LZ4})).items():
            name = unquote(key).removeprefix("model.")
            if name in state:
                raise DataError(f"{file} holds the tensor {name[:200]!r} twice. It is of another program.")
            state[name] = _hdf5_tensor(source, member, f"{file}: {name[:200]!r}")
    except (Damaged, NotPlain) as error:
        raise DataError(f"{file} is not read: {error}. Only tensors stored in the file are.") from None
    finally:
        source.close()
    if not state:
        raise DataError(f"{file} holds no tensor of a model. It is not an HDF5 checkpoint of the Model Zoo.")
    return state


def _is_of_the_model(key: str) -> bool:
    return unquote(key).startswith("model.")


def _hdf5_tensor(source: LocalFile, member: Member, shown: str) -> Tensor:
    """One dataset of an open file. Raises DataError if it is damaged, or far larger than what is stored of it."""
    reader = ShardReader(source, member.stored)
    reader.name = shown
    rows = reader.shape[0]
    num_bytes = math.prod(reader.shape) * reader.dtype.itemsize
    stored = sum(size for _, size in reader.stored_ranges(0, rows)) or len(member.stored.inline or b"")
    if num_bytes > 256 * stored:
        raise DataError(f"{shown} has {num_bytes:,} bytes, and far fewer are stored. It is damaged.")
    values = reader.read(0, rows)
    native = np.array(values, values.dtype.newbyteorder("="), order="C")
    if not member.numbers.get("is_bfloat16") and member.numbers.get("rtfx_dtypes") != _BFLOAT16:
        return torch.from_numpy(native)
    if native.dtype.kind not in "iu" or native.dtype.itemsize != 2:
        raise DataError(f"{shown} is said to hold bfloat16, and holds {native.dtype}. It is damaged.")
    return torch.from_numpy(native.view(np.int16)).view(torch.bfloat16)


def _check_tensor(name: str, tensor: Tensor, file: Path) -> None:
    """Refuse a tensor that is larger than what is stored of it, of no numbers, or on no CPU."""
    stored = (
        tensor.untyped_storage().nbytes()
        if tensor.layout == torch.strided and tensor.device.type == "cpu"
        else -1
    )
    if stored < tensor.numel() * tensor.element_size():
        raise DataError(f"{file}: the tensor {name[:200]!r} is not stored whole. It is not read.")
