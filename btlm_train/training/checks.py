"""What is checked before a model is built: that the data is there and was prepared for this model."""

from __future__ import annotations

from btlm_data.errors import ConfigError
from btlm_train.data.description import DataDescription, describe_data
from btlm_train.data.folders import open_folder, shown
from btlm_train.data.generations import folders_of
from btlm_train.data.manifests import split_folder
from btlm_train.data.settings import DataConfig
from btlm_train.parameters import ModelConfig, Params


def with_split(data: DataConfig, splits: tuple[str, ...]) -> DataConfig:
    """Where data_dir is a whole prepared dataset, its first split of `splits` that is there: `shards` names
    `shards/train`.
    """

    def resolved(value: str | list[str]) -> str | list[str]:
        return (
            split_folder(value, splits)
            if isinstance(value, str)
            else [split_folder(folder, splits) for folder in value]
        )

    changes: dict[str, object] = {}
    if data.data_dir is not None:
        changes["data_dir"] = resolved(data.data_dir)
    if data.mixture is not None:
        changes["mixture"] = [
            entry.model_copy(update={"data_dir": resolved(entry.data_dir)}) for entry in data.mixture
        ]
    return data.model_copy(update=changes)


def with_splits(params: Params) -> Params:
    """The parameters with training data from train/ and validation data from validation/, or test/ without
    one.
    """
    return params.model_copy(
        update={
            "train": None if params.train is None else with_split(params.train, ("train",)),
            "validation": tuple(with_split(data, ("validation", "test")) for data in params.validation),
        }
    )


def check_data(data: DataConfig | None, model: ModelConfig, section: str) -> DataDescription:
    """Stop where the data is missing or was prepared for another model.

    section: the name of the data in messages. Raises ConfigError; InputError and DataError from the reader.
    """
    if data is None:
        raise ConfigError(
            f"The parameters have no {section} section. Add it, with data_dir: the folder of prepared shards."
        )
    if data.data_dir is None and data.mixture is None:
        raise ConfigError(
            f"{section}.data_dir is not set. Prepare shards (btlm-data prepare --out shards) and give the "
            "folder of "
            f"their split: --set {section}.data_dir=shards/train."
        )
    data.check_sources()
    folders = _folders(data)
    for folder in folders:
        if not open_folder(folder).exists():
            raise ConfigError(
                f"{section}.data_dir is {shown(folder)}, and there is no such folder. "
                f"Prepare it with btlm-data prepare, or correct it: --set {section}.data_dir=FOLDER."
            )
    first_of_each = 1  # the others are named by their own folders
    description = describe_data(
        _with_generations(data), data.max_sequence_length, data.cache(), generation=first_of_each
    )
    _check_fit(description, model, f"{section}.data_dir {', '.join(map(shown, folders))}")
    return description


def _check_fit(data: DataDescription, model: ModelConfig, where: str) -> None:
    length, vocabulary = data.sequence_length, data.vocab_size
    if length is not None and length != model.max_position_embeddings:
        raise ConfigError(
            f"{where} holds samples of {length} tokens, the model has max_position_embeddings "
            f"{model.max_position_embeddings}. Prepare the data with --seq-len "
            f"{model.max_position_embeddings}, "
            "or change the model."
        )
    if vocabulary is not None and vocabulary > model.vocab_size:
        raise ConfigError(
            f"{where} was tokenized with {data.tokenizer_name} ({vocabulary} tokens), the model has "
            "vocab_size "
            f"{model.vocab_size}: some tokens would have no embedding. Set model.vocab_size to at least "
            f"{vocabulary}."
        )
    if data.tokenizer_name not in (None, "gpt2") and model.vocab_size == 50257 and vocabulary != 50257:
        raise ConfigError(
            f"{where} was tokenized with {data.tokenizer_name} ({vocabulary} tokens), the model has GPT-2's "
            "vocabulary "
            f"of 50257. Set model.vocab_size to {vocabulary}, or prepare the data with --tokenizer gpt2."
        )


def _with_generations(data: DataConfig) -> list[str]:
    """All folders that are read, those of later generations by their own names."""
    sets = [(data.data_dir, data.generation)]
    if data.mixture is not None:
        sets = [(entry.data_dir, entry.generation or data.generation) for entry in data.mixture]
    return [
        folder
        for names, chosen in sets
        if names is not None
        for _, folder in folders_of([names] if isinstance(names, str) else names, chosen)
    ]


def _folders(data: DataConfig) -> list[str]:
    given = [data.data_dir] if data.mixture is None else [entry.data_dir for entry in data.mixture]
    return [
        name
        for value in given
        if value is not None
        for name in ([value] if isinstance(value, str) else value)
    ]
