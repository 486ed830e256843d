"""Models out to other programs and in from them: what others read, and what is refused in words with nothing
written.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from btlm_data.errors import BtlmError, OutputError
from btlm_train import checkpoint, mup, sessions
from btlm_train.checkpoint import State
from btlm_train.generate import generate
from btlm_train.interchange import export, read_weights
from btlm_train.interchange.huggingface import huggingface_config
from btlm_train.interchange.modelzoo import modelzoo_model, modelzoo_params
from btlm_train.model import BTLM
from btlm_train.parameters import ModelConfig, load_params
from tests import shard_files
from tests.reference import modelzoo_schema
from tests.train import tiny

CONFIG = ModelConfig.model_validate(tiny.MODEL)


def model_of(config: ModelConfig = CONFIG, seed: int = 5) -> BTLM:
    model = BTLM(config)
    mup.initialize(model, config, seed)
    return model.eval()


def weights_of(config: ModelConfig = CONFIG) -> dict[str, torch.Tensor]:
    return dict(model_of(config).state_dict())


def imported(source: Path, folder: Path) -> dict[str, torch.Tensor]:
    sessions.import_(source, folder)
    found = checkpoint.find(folder)
    assert found is not None
    return found.weights()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


# Out
# -----------------------------------------------------------------------------------------------------------------

INITIALIZERS = st.none() | st.builds(
    lambda name, std: {"name": name, "std": std},
    st.sampled_from(["truncated_normal", "normal"]),
    st.floats(0.001, 1),
)


@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    heads = draw(st.integers(1, 4))
    mup_on = draw(st.booleans())
    return ModelConfig.model_validate(
        {
            "hidden_size": heads * draw(st.integers(1, 4)),
            "num_heads": heads,
            "num_hidden_layers": draw(st.integers(1, 3)),
            "filter_size": draw(st.integers(1, 9)),
            "dropout_rate": draw(st.floats(0, 0.5)),
            "attention_dropout_rate": draw(st.none() | st.floats(0, 0.5)),
            "embedding_dropout_rate": draw(st.none() | st.floats(0, 0.5)),
            "use_ffn_bias": draw(st.booleans()),
            "attention_type": draw(st.sampled_from(["scaled_dot_product", "dot_product"])),
            "attention_logits_alpha": draw(st.floats(0.1, 2)),
            "pos_scaling_factor": draw(st.floats(1, 8)),
            "loss_scaling": draw(st.sampled_from(["batch_size", "num_tokens"])),
            "mup_base_hidden_size": 2.0 if mup_on else None,
            "mup_base_filter_size": 3.0 if mup_on else None,
            "output_logits_alpha": draw(st.none() | st.floats(0.1, 3)) if mup_on else None,
            "output_logits_scale": None if mup_on else draw(st.none() | st.floats(0.1, 3)),
            "scale_qk_dot_by_d": draw(st.none() | st.booleans()),
            "scale_output_logits_by_d": draw(st.booleans()),
            "embeddings_scale": draw(st.floats(0.1, 20)),
            "initializer": draw(INITIALIZERS),
            "embedding_initializer": draw(INITIALIZERS),
            "ffn_output_layer_initializer": draw(INITIALIZERS),
        }
    )


@given(model_configs())
def test_the_model_zoos_own_schema_takes_every_export_and_means_the_same(config: ModelConfig) -> None:
    text = yaml.safe_dump(modelzoo_params(config))
    theirs = modelzoo_schema.Params.model_validate(yaml.safe_load(text)).trainer.init.model
    written = yaml.safe_load(text)["trainer"]["init"]["model"]
    assert set(written) == set(modelzoo_schema.BtlmModel.model_fields), "a key left out means a default there"
    assert theirs.position_embedding_type == "alibi"
    assert theirs.nonlinearity == "swiglu"
    assert theirs.dropout_rate == config.dropout_rate
    assert theirs.attention_dropout_rate == config.attention_dropout
    assert theirs.embedding_dropout_rate == config.embedding_dropout
    for name in ("", "embedding_", "ffn_output_layer_"):
        ours = getattr(config, f"{name}initializer")
        if ours is not None and ours.name == "truncated_normal":
            drawn = getattr(theirs, f"{name}initializer")
            assert (drawn.std, drawn.a, drawn.b) == (ours.std, *ours.bounds)
    assert modelzoo_model(ModelConfig.model_validate(written)) == modelzoo_model(config)


def test_the_exported_parameters_keep_optimizer_and_schedule(tmp_path: Path) -> None:
    params = load_params("params_btlm_tiny_2k.yaml")
    state = State(
        run="a" * 32, step=3, updates=3, tokens=0, seed=4, data=None, model=params.model.model_dump(mode="json"),
        optimizer=params.optimizer.model_dump(mode="json"),
        schedule=[segment.model_dump(mode="json") for segment in params.schedule],
    )  # fmt: skip
    tree = modelzoo_params(params.model, state)
    modelzoo_schema.Params.model_validate(tree)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tree))
    back = load_params(str(path))
    assert (back.optimizer, back.schedule, back.seed) == (params.optimizer, params.schedule, 4)
    assert back.assumed == ()


def test_the_checkpoint_for_the_model_zoo_is_what_its_trainer_loads(tmp_path: Path) -> None:
    """Its loader reads safetensors only as a flat state, in which its trainer finds no `model`: so there is a
    .mdl too.
    """
    export(weights_of(), CONFIG, tmp_path, "modelzoo")
    loaded = torch.load(tmp_path / "checkpoint.mdl", weights_only=True)
    assert set(loaded) == {"model"}
    assert all(name.startswith("model.") for name in loaded["model"])
    assert equal(loaded["model"], load_file(tmp_path / "checkpoint.safetensors"))
    assert equal(imported(tmp_path / "checkpoint.mdl", tmp_path / "run"), weights_of())


@pytest.fixture(scope="module")
def transformers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The library, copying the code of our folders to a temporary place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield pytest.importorskip("transformers")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_heads": 4, "alibi_train_seq_len": 16},
        {"pos_scaling_factor": 2.0, "scale_qk_dot_by_d": False},
        {"mup_base_hidden_size": None, "mup_base_filter_size": None, "output_logits_alpha": None},
        {"attention_type": "dot_product"},
        {"hidden_size": 24, "num_heads": 6},
    ],
)
def test_transformers_gives_our_logits_and_our_tokens(
    transformers: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Offline, by the code that travels with the folder; generation with a cache of keys and values."""
    config = ModelConfig.model_validate(tiny.MODEL | changes)
    model = model_of(config)
    export(dict(model.state_dict()), config, tmp_path / "out", "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    theirs.eval()
    ids = torch.randint(0, tiny.VOCAB - 1, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model.logits(model(ids))
        torch.testing.assert_close(theirs(ids).logits, ours, rtol=1e-5, atol=1e-5)
        step = theirs(ids[:, :10], use_cache=True)
        rest = theirs(ids[:, 10:], past_key_values=step.past_key_values)
    if (
        "alibi_train_seq_len" not in changes
    ):  # there the first call sees a shorter length, and so another scale
        torch.testing.assert_close(torch.cat([step.logits, rest.logits], 1), ours, rtol=1e-5, atol=1e-5)
    prompt = ids[0, :5].tolist()
    # ours scales for the whole length from the first token on
    length = 16 if "alibi_train_seq_len" in changes else 40
    told = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=length - 5, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert told[0, 5:].tolist() == generate(model, prompt, length - 5, temperature=0.0)


def test_padding_on_the_left_changes_nothing(transformers: Any, tmp_path: Path) -> None:
    export(weights_of(), CONFIG, tmp_path / "out", "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True
    ).eval()
    ids = torch.randint(0, tiny.VOCAB, (1, 8), generator=torch.Generator().manual_seed(1))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    mask = torch.tensor([[0] * 3 + [1] * 8])
    with torch.no_grad():
        torch.testing.assert_close(theirs(padded, attention_mask=mask).logits[:, 3:], theirs(ids).logits)
        loss = theirs(ids, labels=ids).loss
    assert torch.isfinite(loss)


def test_jais_has_the_same_tensors_and_keys() -> None:
    btlm, jais = huggingface_config(CONFIG), huggingface_config(CONFIG, kind="jais")
    assert (jais["model_type"], jais["architectures"]) == ("jais", ["JAISLMHeadModel"])
    assert {key for key in btlm if key.startswith("mup_")} <= set(jais)
    assert "auto_map" not in jais
    assert {k: v for k, v in jais.items() if k not in ("model_type", "architectures")} == {
        k: v for k, v in btlm.items() if k not in ("model_type", "architectures", "auto_map")
    }


def test_a_tokenizer_of_ones_own_travels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tokenizers import Tokenizer, models

    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(path))
    files = export(weights_of(), CONFIG, tmp_path / "with", "hf", tokenizer=path)
    assert (tmp_path / "with" / "tokenizer.json") in files
    assert (tmp_path / "with" / "tokenizer.json").read_bytes() == path.read_bytes()
    export(weights_of(), CONFIG, tmp_path / "without", "hf")
    assert "No tokenizer is written" in caplog.text


@pytest.mark.parametrize("to", ["hf", "jais", "modelzoo"])
def test_an_export_replaces_its_own_files_and_no_others(tmp_path: Path, to: Any) -> None:
    files = export(weights_of(), CONFIG, tmp_path / "out", to)
    before = {file: file.read_bytes() for file in files}
    files[0].write_text("cut by a kill")
    assert export(weights_of(), CONFIG, tmp_path / "out", to) == files
    assert {file: file.read_bytes() for file in files} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / files[-1].name).write_text("mine")
    with pytest.raises(OutputError, match="no export wrote it"):
        export(weights_of(), CONFIG, tmp_path / "mine", to)
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["mine"]


def test_exported_files_have_the_umasks_mode(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        files = [
            *export(weights_of(), CONFIG, tmp_path / "a", "hf"),
            *export(weights_of(), CONFIG, tmp_path / "b", "modelzoo"),
        ]
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o644"}


# In
# ------------------------------------------------------------------------------------------------------------------


def huggingface_folder(folder: Path, config: ModelConfig = CONFIG) -> Path:
    """As another program would have written it: no record of ours."""
    export(weights_of(config), config, folder, "hf")
    values = json.loads((folder / "config.json").read_text())
    del values["btlm_train_model"]
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def sharded(folder: Path, suffix: str = ".safetensors") -> Path:
    """model.safetensors or pytorch_model.bin in two parts with an index."""
    state = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names = sorted(state)
    parts = {f"{stem}-00001-of-00002{suffix}": names[::2], f"{stem}-00002-of-00002{suffix}": names[1::2]}
    for file, members in parts.items():
        part = {name: state[name] for name in members}
        if suffix == ".safetensors":
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
    weight_map = {name: file for file, members in parts.items() for name in members}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def torch_file(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any] = dict) -> Path:
    state = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    torch.save(change(state), folder / "pytorch_model.bin")
    return folder


def modelzoo_hdf5(path: Path, bfloat16: bool = False, compression: str | None = None) -> None:
    """As its savers write them: h5py's defaults, the shape of chunks guessed, truth values as attributes."""
    export(weights_of(), CONFIG, path.parent, "modelzoo")
    state = load_file(path.parent / "checkpoint.safetensors")
    for name in ("checkpoint.safetensors", "checkpoint.mdl"):
        (path.parent / name).unlink()
    with h5py.File(path, "w") as file:
        file.attrs["__version__"] = 0.4
        file["optimizer.state"] = np.zeros(3)
        for name, tensor in state.items():
            value = tensor.to(torch.bfloat16).view(torch.int16) if bfloat16 else tensor
            data = value.numpy()
            if compression == "lz4":
                chunks = tuple(max(1, size // 2) for size in data.shape)
                shard_files.write_lz4(file, f"model.{name}", data, chunks, 300)
            else:
                file.create_dataset(f"model.{name}", data=data, compression=compression)
            attributes = file[f"model.{name}"].attrs
            if compression == "lz4":  # as since 2.3
                attributes["dtypes"] = np.array(["torch.bfloat16" if bfloat16 else "torch.float32"], object)
                attributes["rtfx_dtypes"] = [15 if bfloat16 else 11]
            else:
                attributes["is_bfloat16"] = bfloat16
            file[f"model.{name}"].attrs["__H5_TYPE__"] = "TorchTensorH5Type"


@pytest.mark.parametrize(
    "kind", ["whole", "sharded", "bin", "bin sharded", "state_dict", "masks", "head alone", "bfloat16"]
)
def test_every_huggingface_layout_comes_in(tmp_path: Path, kind: str) -> None:
    folder = huggingface_folder(tmp_path / "hf")
    expected = weights_of()
    if kind == "sharded":
        sharded(folder)
    elif kind == "bin":
        torch_file(folder)
    elif kind == "bin sharded":
        sharded(folder, ".bin")
    elif kind == "state_dict":
        torch_file(folder, lambda state: {"state_dict": state, "epoch": 3})
    elif kind == "masks":
        mask = {
            "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4),
            "transformer.h.0.attn.masked_bias": torch.zeros(()),
        }
        save_file(tensors_of(folder) | mask, folder / "model.safetensors")
    elif kind == "head alone":
        state = tensors_of(folder)
        del state["transformer.wte.weight"]
        save_file(state, folder / "model.safetensors")
    elif kind == "bfloat16":
        save_file(
            {n: t.to(torch.bfloat16) for n, t in tensors_of(folder).items()}, folder / "model.safetensors"
        )
        expected = {name: tensor.to(torch.bfloat16).float() for name, tensor in expected.items()}
    assert equal(imported(folder, tmp_path / "run"), expected)


@pytest.mark.parametrize("compression", [None, "gzip", "lzf", "lz4"])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_model_zoo_hdf5_checkpoint_comes_in(
    tmp_path: Path, bfloat16: bool, compression: str | None
) -> None:
    (tmp_path / "mz").mkdir()
    modelzoo_hdf5(tmp_path / "mz" / "checkpoint.mdl", bfloat16, compression)
    expected = weights_of()
    if bfloat16:
        expected = {name: tensor.to(torch.bfloat16).float() for name, tensor in expected.items()}
    assert equal(imported(tmp_path / "mz", tmp_path / "run"), expected)


def test_an_older_parameter_file_beside_the_weights(tmp_path: Path) -> None:
    """The flat form of 2.0, with its keys, as the model's configuration."""
    export(weights_of(), CONFIG, tmp_path / "mz", "modelzoo")
    model = yaml.safe_load((tmp_path / "mz" / "params.yaml").read_text())["trainer"]["init"]["model"]
    model |= {"use_position_embedding": True, "use_bfloat16": True, "mixed_precision": True}
    del model["name"]
    (tmp_path / "mz" / "params.yaml").write_text(
        yaml.safe_dump({"model": model, "runconfig": {"use_cs_grad_accum": True}})
    )
    assert equal(imported(tmp_path / "mz", tmp_path / "run"), weights_of())


@pytest.mark.parametrize(
    ("key", "value", "check"),
    [
        ("n_inner", None, lambda config: config.filter_size == 4 * config.hidden_size),
        ("scale_attn_weights", False, lambda config: config.attention_type == "dot_product"),
        ("alibi_scaling", {"type": "linear", "factor": 4.0}, lambda config: config.pos_scaling_factor == 4.0),
        ("scale_attn_by_inverse_layer_idx", False, lambda config: True),
    ],
)
def test_settings_of_huggingface_that_btlm_has(tmp_path: Path, key: str, value: Any, check: Any) -> None:
    config = CONFIG.model_copy(update={"filter_size": 4 * CONFIG.hidden_size, "mup_base_filter_size": 32.0})
    folder = huggingface_folder(tmp_path / "hf", config)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {key: value}))
    found = read_weights(folder)[1]
    assert found is not None
    assert check(found)


def with_config(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        for key, value in changes.items():
            if value is ...:
                del values[key]
            else:
                values[key] = value
        (folder / "config.json").write_text(json.dumps(values))

    return apply


def with_tensor(name: str, tensor: torch.Tensor | None) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = tensors_of(folder)
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
        save_file(state, folder / "model.safetensors")

    return apply


def with_bytes(name: str, data: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return apply


def with_index(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = sharded(folder) / "model.safetensors.index.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return apply


def with_torch(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        torch_file(folder, change)

    return apply


def cut(name: str, keep: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        if name.endswith(".bin"):
            torch_file(folder)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:keep])

    return apply


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch evil",)


def only_pickle(data: bytes, compress: int = zipfile.ZIP_STORED) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with zipfile.ZipFile(folder / "pytorch_model.bin", "w", compress) as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/version", b"3\n")

    return apply


def hdf5(change: Callable[[Any, Path], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        shutil.rmtree(folder)
        folder.mkdir()
        modelzoo_hdf5(folder / "checkpoint.mdl")
        with h5py.File(folder / "checkpoint.mdl", "r+") as file:
            change(file, folder)

    return apply


def _replaced(file: Any, name: str, **options: Any) -> None:
    del file[name]
    file.create_dataset(name, **options)


def _external(file: Any, folder: Path) -> None:
    name = "model.model.ln_f.bias"
    del file[name]
    file.create_dataset(name, (16,), "f4", external=[("/etc/passwd", 0, 64)])


def _virtual(file: Any, folder: Path) -> None:
    name = "model.model.ln_f.bias"
    del file[name]
    layout = h5py.VirtualLayout((16,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "data", (16,))
    file.create_virtual_dataset(name, layout)


def _linked(file: Any, folder: Path) -> None:
    del file["model.model.ln_f.bias"]
    file["model.model.ln_f.bias"] = h5py.ExternalLink("/etc/passwd", "/data")


def _soft_linked(file: Any, folder: Path) -> None:
    del file["model.model.ln_f.bias"]
    file["model.model.ln_f.bias"] = h5py.SoftLink("/model.model.ln_f.weight")


def hdf5_bytes(change: Callable[[bytearray], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        hdf5(
            lambda file, _: _replaced(
                file, "model.model.ln_f.bias", shape=(16,), dtype="f4", chunks=(16,), data=range(16)
            )
        )(folder)
        content = bytearray((folder / "checkpoint.mdl").read_bytes())
        change(content)
        (folder / "checkpoint.mdl").write_bytes(content)

    return apply


def _chunk_elsewhere(content: bytearray) -> None:
    """The only chunk of the file is said to lie 2^40 bytes further on."""
    node = next(i for i in range(len(content)) if content[i : i + 5] == b"TREE\x01")
    address = node + 24 + 8 + 2 * 8  # sizes of the key, its corner and the element's offset
    content[address : address + 8] = (2**40).to_bytes(8, "little")


def _huge(file: Any, folder: Path) -> None:
    _replaced(file, "model.model.ln_f.bias", shape=(2**40,), dtype="f4", chunks=(2**16,))


WTE = "transformer.wte.weight"
HEAD = "lm_head.weight"


# a change to a folder of Hugging Face's layout -> part of the message
def _with_attribute(file: Any, name: str, value: Any) -> None:
    next(file[key] for key in file if key.startswith("model.")).attrs[name] = value


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "tensor missing": (with_tensor("transformer.ln_f.bias", None), r"ln_f.bias is missing"),
    "tensor surplus": (with_tensor("transformer.h.7.ln_1.bias", torch.zeros(16)), "blocks.7.ln_1.bias has no place"),
    "tensor foreign": (with_tensor("transformer.wpe.weight", torch.zeros(3)), "does not have"),
    "tensor shape": (with_tensor("transformer.h.0.ln_1.bias", torch.zeros(17)), r"has shape \(17,\)"),
    "tensor scalar": (with_tensor("transformer.h.0.attn.c_attn.weight", torch.zeros(())), "has shape"),
    "tensor integers": (with_tensor("transformer.h.0.ln_1.bias", torch.zeros(16, dtype=torch.int32)), "floating-point"),
    "head untied": (with_tensor(HEAD, torch.zeros(tiny.VOCAB, 16)), "differ. In BTLM they are one"),
    "head shape": (with_tensor(HEAD, torch.zeros(3, 16)), "differ. In BTLM they are one"),
    "slopes": (with_tensor("transformer.relative_pe.slopes", torch.ones(2, 1)), "slopes are not those"),
    "slopes count": (with_tensor("transformer.relative_pe.slopes", torch.ones(7, 1)), "slopes are not those"),
    "layer name": (with_tensor("transformer.h.x.ln_1.bias", torch.zeros(16)), "does not have"),
    "layer number": (with_tensor("transformer.h.00.ln_1.bias", torch.zeros(16)), "does not have"),
    "both prefixes": (with_tensor("h.0.ln_1.bias", torch.zeros(16)), "two tensors"),
    "model type": (with_config(model_type="gpt2"), "model_type 'gpt2'"),
    "no model type": (with_config(model_type=...), "model_type"),
    "hidden size": (with_config(n_embd=32), "has shape"),
    "heads": (with_config(n_head=3), "not a multiple"),
    "heads 4": (with_config(n_head=4), "slopes"),
    "layers": (with_config(n_layer=3), "is missing"),
    "layers huge": (with_config(n_layer=10**9), "num_hidden_layers"),
    "filter": (with_config(n_inner=25), "has shape"),
    "filter null": (with_config(n_inner=None), "has shape"),
    "vocabulary": (with_config(vocab_size=65), "has shape"),
    "vocabulary text": (with_config(vocab_size="many"), "whole number"),
    "hidden text": (with_config(n_embd="wide"), "expected a number"),
    "hidden negative": (with_config(n_embd=-16), "expected a number"),
    "key missing": (with_config(n_head=...), "lacks 'n_head'"),
    "learned positions": (with_config(position_embedding_type="learned"), "position_embedding_type"),
    "no positions key": (with_config(position_embedding_type=...), "position_embedding_type"),
    "activation": (with_config(activation_function="gelu"), "activation_function"),
    "by layer": (with_config(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
    "cross attention": (with_config(add_cross_attention=True), "add_cross_attention"),
    "alibi scaling": (with_config(alibi_scaling={"type": "yarn"}), "alibi_scaling"),
    "alibi scaling text": (with_config(alibi_scaling="linear"), "alibi_scaling"),
    "width 0": (with_config(mup_width_scale=0), "mup_width_scale"),
    "width text": (with_config(mup_width_scale="x"), "mup_width_scale"),
    "width list": (with_config(mup_width_scale=[1]), "mup_width_scale"),
    "epsilon": (with_config(layer_norm_epsilon=-1), "layer_norm_epsilon"),
    "dropout": (with_config(resid_pdrop=2), "dropout_rate"),
    "our record, other size": (
        with_config(btlm_train_model=CONFIG.model_copy(update={"embeddings_scale": 1.0}).model_dump(mode="json", exclude_defaults=True)),
        "contradicts itself",
    ),
    "our record, a list": (with_config(btlm_train_model=[1]), "expected a section"),
    "config empty": (with_bytes("config.json", b""), "not valid JSON"),
    "config a list": (with_bytes("config.json", b"[]"), "no JSON object"),
    "config deep": (with_bytes("config.json", b"[" * 100_000), "not valid JSON"),
    "config huge": (with_bytes("config.json", b" " * (2**20 + 1)), "larger than"),
    "config no text": (with_bytes("config.json", b"\xff\xfe\x00"), "not valid JSON"),
    "weights empty": (with_bytes("model.safetensors", b""), "torn"),
    "weights zeros": (with_bytes("model.safetensors", b"\0" * 100), "torn"),
    "weights header": (with_bytes("model.safetensors", b"\xff" * 100), "torn"),
    "weights cut": (cut("model.safetensors", -10), "torn"),
    "index text": (with_index(lambda index: "x"), "no JSON object"),
    "index empty": (with_index(lambda index: {}), "no weight_map"),
    "index list": (with_index(lambda index: {"weight_map": [1]}), "no weight_map"),
    "index outside": (with_index(lambda index: {"weight_map": {WTE: "../../etc/passwd"}}), "Only plain names"),
    "index absolute": (with_index(lambda index: {"weight_map": {WTE: "/etc/x.safetensors"}}), "Only plain names"),
    "index number": (with_index(lambda index: {"weight_map": {WTE: 3}}), "Only plain names"),
    "index file missing": (with_index(lambda index: {"weight_map": {WTE: "gone.safetensors"}}), "is missing"),
    "index short": (
        with_index(lambda index: {"weight_map": dict(list(index["weight_map"].items())[:3])}),
        "does not place there",
    ),
    "index extra": (
        with_index(lambda index: {"weight_map": index["weight_map"] | {"x": "model-00001-of-00002.safetensors"}}),
        "no file holds it",
    ),
    "bin code": (with_torch(lambda state: {"x": Evil()}), "never code"),
    "bin pickle": (only_pickle(pickle.dumps(Evil())), "never code"),
    "bin a list": (with_torch(lambda state: list(state.values())), "no state dict"),
    "bin numbers": (with_torch(lambda state: state | {"x": 3}), "expected tensors by name"),
    "bin keys": (with_torch(lambda state: {3: torch.zeros(1)}), "expected tensors by name"),
    "bin expanded": (
        with_torch(lambda state: state | {"transformer.ln_f.bias": torch.zeros(1).expand(2**40)}),
        "not stored whole",
    ),
    "bin sparse": (with_torch(lambda state: {"x": torch.zeros(3, 3).to_sparse()}), "not stored whole|never code"),
    "bin on no device": (with_torch(lambda state: {"x": torch.zeros(3, device="meta")}), "not stored whole|never code"),
    "bin cut": (cut("pytorch_model.bin", 3000), "torn"),
    "bin compressed": (only_pickle(b"\0" * 10_000_000, zipfile.ZIP_DEFLATED), "compressed"),
    "bin bare pickle": (
        lambda folder: ((folder / "model.safetensors").unlink(), (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))),
        "torn, or not an archive",
    ),
    "hdf5 external": (hdf5(_external), "stored in other files"),
    "hdf5 virtual": (hdf5(_virtual), "newer kind|is a virtual dataset"),
    "hdf5 link": (hdf5(_linked), "newer kind|is a link"),
    "hdf5 soft link": (hdf5(_soft_linked), "is a link"),
    "hdf5 huge": (hdf5(_huge), "more than a file of .* can hold"),
    "hdf5 chunk behind the end": (hdf5_bytes(_chunk_elsewhere), "would be outside the file"),
    "hdf5 group": (hdf5(lambda file, folder: file.create_group("model.model.extra")), "is a group|has no shape|not a tensor stored"),
    "hdf5 text": (
        hdf5(lambda file, folder: file.create_dataset("model.model.x", data="text")),
        "a single value",
    ),
    "hdf5 no model": (
        hdf5(lambda file, folder: [file.__delitem__(key) for key in list(file) if key.startswith("model.")]),
        "no tensor of a model",
    ),
    "hdf5 key missing": (
        hdf5(lambda file, folder: file.__delitem__(next(key for key in file if "proj_k" in key))),
        "incomplete",
    ),
    "hdf5 tensor twice": (
        hdf5(lambda file, folder: file.create_dataset("model.model%2Elm_head.weight", data=np.zeros(3))),
        "holds the tensor 'model.lm_head.weight' twice",
    ),
    "hdf5 never written": (
        hdf5(lambda file, folder: file.create_dataset("model.model.x", (8, 4), "<f4", chunks=(4, 4))),
        "were never written",
    ),
    "hdf5 bfloat16 of floats": (
        hdf5(lambda file, folder: _with_attribute(file, "is_bfloat16", True)),
        "is said to hold bfloat16, and holds float32",
    ),
    "hdf5 filter": (
        hdf5(lambda file, folder: file.create_dataset("model.model.x", data=np.zeros((8, 4), "<i4"), scaleoffset=4)),
        "HDF5 filter 6",
    ),
    "nothing": (lambda folder: shutil.rmtree(folder) or folder.mkdir(), "no weights at"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "without config.json"),
    "params broken": (
        lambda folder: ((folder / "config.json").unlink(), (folder / "params.yaml").write_text("model: &m [*m]")),
        "no complete value",
    ),
    "params no model": (
        lambda folder: ((folder / "config.json").unlink(), (folder / "params.yaml").write_text("runconfig: {seed: 1}")),
        "no `model` section",
    ),
    "params other model": (
        lambda folder: (
            (folder / "config.json").unlink(),
            (folder / "params.yaml").write_text("model: {position_embedding_type: rotary}"),
        ),
        "alibi",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return huggingface_folder(tmp_path_factory.mktemp("hf") / "folder")  # type: ignore[return-value]


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.timeout(60)
def test_what_is_wrong_is_refused_in_words_and_nothing_is_written(
    prepared: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change, message = REFUSED[name]
    folder = Path(shutil.copytree(prepared, tmp_path / "hf"))
    change(folder)
    with pytest.raises(BtlmError, match=message) as caught:
        sessions.import_(folder, tmp_path / "run")
    assert len(str(caught.value)) < 2000
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "evil").exists()


def test_a_model_directory_that_exists_is_left_alone(prepared: Path, tmp_path: Path) -> None:
    result = tiny.invoke("import", str(prepared), "--model-dir", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    again = tiny.invoke("import", str(prepared), "--model-dir", str(tmp_path / "run"))
    assert again.exit_code == 2
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


@given(
    data=st.binary(max_size=300),
    name=st.sampled_from(["model.safetensors", "pytorch_model.bin", "checkpoint.mdl"]),
)
def test_random_bytes_are_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str
) -> None:
    folder = tmp_path_factory.mktemp("random")
    (folder / name).write_bytes(data)
    with pytest.raises(BtlmError):
        read_weights(folder)
    shutil.rmtree(folder)
