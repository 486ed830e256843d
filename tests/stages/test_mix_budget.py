"""A mix by budget: shares and phases against plain counts, in the arithmetic, in the shards and in their order."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from btlm_data import mix_plan, planning
from btlm_data.cli import cli
from btlm_data.errors import ConfigError
from btlm_data.formats import dataset, ledger
from btlm_data.formats.shard_formats import vsl
from btlm_data.inspection import verify
from btlm_data.lineage import prefix
from btlm_data.lineage.datasets import open_dataset
from btlm_data.lineage.forget import forget
from btlm_data.lineage.queries import make
from btlm_data.mix_plan import BINS, Borders
from btlm_data.recipe.load import load
from btlm_data.recipe.mix import MixSettings
from btlm_train.data.loader import GptHDF5MapDataProcessor
from tests.stages.runs import prepare

WORDS = {"Web": " web", "Books": " book", "Code": " code"}  # a token each
SCHEDULE: dict[str, Any] = {
    "tokens": "30K",
    "sources": {"Books": 0.4, "Code": 0.0},
    "schedule": [{"until": "70%"}, {"anneal": {"Code": "50%"}}],
}


def corpus(path: Path, documents: int = 600) -> Path:
    draw = random.Random(5)
    with path.open("w") as file:
        for _ in range(documents):
            [source] = draw.choices(list(WORDS), [6, 3, 1])
            record = {"text": WORDS[source] * draw.randrange(20, 90), "meta": {"redpajama_set_name": source}}
            file.write(json.dumps(record) + "\n")
    return path


def made(source: Path, out: Path, **options: Any) -> Path:
    given = {
        "seq_len": 64,
        "dedupe__method": "none",
        "shards__samples_per_file": 100,
        "mix": SCHEDULE,
        **options,
    }
    assert prepare(source, out, clean__min_chars=0, **given).complete
    return out


# The arithmetic ---------------------------------------------------------------------------------------------

SHARES = st.lists(st.integers(0, 5), min_size=1, max_size=4)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 500), min_size=1, max_size=60), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(1, 9), SHARES), min_size=1, max_size=3),
    st.integers(1, 60_000),
    st.integers(0, 9),
)
def test_every_phase_has_the_tokens_asked_for_and_no_document_runs_ahead(
    documents: list[list[int]], parts: list[tuple[int, list[int]]], tokens: int, seed: int
) -> None:
    names = [f"s{i}" for i in range(len(documents))]
    sizes = [size for size, _ in parts]
    phases = [
        {
            "until": sum(sizes[: i + 1]) / sum(sizes),
            "sources": {name: part / 20 for name, part in zip(names[:-1], shares, strict=False)},
        }
        for i, (_, shares) in enumerate(parts)
    ]
    mix = MixSettings.model_validate({"tokens": tokens, "max_epochs": 100, "schedule": phases})
    length = np.array([size for each in documents for size in each], np.uint64)
    codes = np.array([number for number, each in enumerate(documents) for _ in each])
    keys = np.arange(len(codes), dtype=np.uint64) * np.uint64(7919)
    hashed = mix_plan.hashes(keys, seed)
    whole = mix_plan.weigh(codes, hashed, length)
    halves = [
        mix_plan.weigh(codes[part], hashed[part], length[part])
        for part in (slice(0, None, 2), slice(1, None, 2))
    ]
    assert all((a == b).all() for a, b in zip(mix_plan.added(halves), whole, strict=True))
    if any(
        asked > 100 * has + 1
        for asked, has in zip(plain_ends(parts, documents, tokens), map(sum, documents), strict=True)
    ):
        with pytest.raises(ConfigError, match="epochs"):
            Borders.of(mix, names, whole)
        return
    borders, asked = Borders.of(mix, names, whole)
    assert abs(int(asked.sum()) - tokens) <= len(names) * len(phases)
    copies = borders.copies(names, codes, hashed)
    assert (copies >= 0).all()
    for number in range(len(names)):
        own = codes == number
        per_bin = np.bincount((hashed[own] >> np.uint64(52)).astype(int), length[own], BINS)
        upto = np.cumsum(copies[own], axis=1)
        assert (upto.max(axis=0) - upto.min(axis=0) <= 1).all()
        found = (upto * length[own][:, None].astype(int)).sum(axis=0)
        assert (np.abs(found - np.cumsum(asked[number])) <= per_bin.max() + 1).all()
        for until in upto.T:  # those that are seen once more are the first of the order
            more = hashed[own][until > until.min()]
            assert (
                not len(more)
                or until.max() == until.min()
                or more.max() < hashed[own][until == until.min()].min()
            )


def plain_ends(parts: list[tuple[int, list[int]]], documents: list[list[int]], tokens: int) -> list[float]:
    """Tokens of each source over all phases: those named have their shares, the others share the rest by size."""
    totals, size = [0.0] * len(documents), sum(size for size, _ in parts)
    for part, shares in parts:
        named = {number: share / 20 for number, share in zip(range(len(documents) - 1), shares, strict=False)}
        others = sum(sum(each) for number, each in enumerate(documents) if number not in named)
        rest = 1 - sum(named.values())
        for number, each in enumerate(documents):
            totals[number] += named.get(number, rest * sum(each) / others) * tokens * part / size
    return totals


def test_unimax_is_that_of_the_paper() -> None:
    available = {
        "swe": 179955884499,
        "fas": 184595788282,
        "ekk": 42541080893,
        "isl": 10027573389,
        "fao": 549707867,
    }
    taken = mix_plan.unimax(available, 250 * 10**9, Fraction(4))
    rest = Fraction(250 * 10**9 - 4 * (549707867 + 10027573389), 3)
    assert taken == {"swe": rest, "fas": rest, "ekk": rest, "isl": 4 * 10027573389, "fao": 4 * 549707867}
    ends = mix_plan.allocate(MixSettings.model_validate({"tokens": "250B", "sources": "unimax"}), available)
    assert ends == [{name: round(tokens) for name, tokens in taken.items()}]
    with pytest.raises(ConfigError, match="at most 4 times each"):
        mix_plan.allocate(MixSettings.model_validate({"tokens": "2T", "sources": "unimax"}), available)


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        ({"tokens": 8000, "sources": {"a": 0.5}}, "50% of 8,000 tokens are 4,000; it has 900, so that is 4.44 epochs"),
        ({"tokens": 8000, "sources": {"a": 0.5}}, "at most 7,200 tokens can be had"),
        ({"tokens": 8000, "sources": {"a": 0.5}}, "allow 4.45 epochs"),
        ({"sources": {"a": 0.5, "b": 0.2, "c": 0.1}}, r"add up to 80% \(a 50% \+ b 20% \+ c 10%\)"),
        ({"sources": {"z": 0.5}}, "z is to be 50% of the tokens, and no document of it is left"),
        ({"schedule": [{"until": 0.5}, {"end": {"z": 1}}]}, "end: z is to be 100%"),
    ],
)  # fmt: skip
def test_impossible_budgets_are_refused_with_the_arithmetic(mix: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        mix_plan.allocate(MixSettings.model_validate(mix), {"a": 900, "b": 5000, "c": 6000})


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(0.01, 0.99))
def test_the_advice_of_a_refusal_holds(has: int, budget: int, share: float) -> None:
    mix: dict[str, Any] = {"tokens": budget, "sources": {"a": round(share, 2)}, "max_epochs": 1}
    available = {"a": has, "b": 2 * budget}
    try:
        mix_plan.allocate(MixSettings.model_validate(mix), available)
    except ConfigError as error:
        tokens = re.search(r"at most ([\d,]+) tokens", str(error))
        assert tokens is not None
        if tokens[1] != "0":
            fewer = mix | {"tokens": int(tokens[1].replace(",", ""))}
            mix_plan.allocate(MixSettings.model_validate(fewer), available)
        if epochs := re.search(r"allow ([\d.]+) epochs", str(error)):
            mix_plan.allocate(MixSettings.model_validate(mix | {"max_epochs": float(epochs[1])}), available)


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        ({"tokens": "1.5X"}, "no number of tokens"),
        ({"sources": {"a": "90%", "b": 0.2}}, "90% [+] 20% = 110%"),
        ({"sources": {"a": "90 percent"}}, "is no share"),
        ({"tokens": 5, "Books": 2.0}, "Books says how often documents are seen, and tokens makes the mix one by budget"),
        ({"max_epochs": 3}, "belongs to a mix by budget"),
        ({"schedule": [{"until": 0.5}, {"until": 0.5}, {}]}, "ends at 50%, not behind"),
        ({"schedule": [{"until": 0.5}]}, "the last phase ends at 50%"),
        ({"schedule": [{}, {}]}, "has no `until`"),
        ({"schedule": [{"until": 0.5, "x": {"a": 1}}, {"x": {}}]}, "two phases have the name 'x'"),
        ({"schedule": [{"untill": 0.5}, {}]}, "Extra inputs"),
    ],
)  # fmt: skip
def test_what_is_no_budget_is_refused_and_says_why(mix: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        MixSettings.model_validate(mix)


def test_the_spelling_of_a_recipe_is_kept() -> None:
    given = {
        "tokens": "600B",
        "sources": {"code": "12%"},
        "schedule": [{"until": "90%"}, {"anneal": {"books": "30%"}}],
    }
    mix = MixSettings.model_validate(given)
    written = mix.model_dump(mode="json")
    assert written == {
        "tokens": 600 * 10**9,
        "sources": {"code": 0.12},
        "max_epochs": 4.0,
        "schedule": [{"until": 0.9}, {"name": "anneal", "sources": {"books": 0.3}}],
    }
    assert MixSettings.model_validate(written) == mix
    assert MixSettings.model_validate({"Books": 2}).model_dump(mode="json") == {"Books": 2.0}


# Weights from files -----------------------------------------------------------------------------------------


def test_weights_of_a_file_are_the_sources(tmp_path: Path) -> None:
    long, wide, optimal = (tmp_path / name for name in ("long.csv", "ratios.csv", "x_optimal.json"))
    long.write_text("domain,weight\nWeb,0.7\n dclm:code ,0.3\n")
    wide.write_text("run,name,index,Web,dclm:code\nr1,first,0,0.5,0.5\nr2,second,1,0.25,0.751\n")
    optimal.write_text(json.dumps([{"domain": "Web", "weight": 0.2}, {"domain": "Books", "weight": 0.8}]))
    cases: list[tuple[Any, dict[str, float]]] = [
        (str(long), {"Web": 0.7, "dclm:code": 0.3}),
        ({"file": str(wide), "run": "r2"}, {"Web": 0.25 / 1.001, "dclm:code": 0.751 / 1.001}),
        (str(optimal), {"Web": 0.2, "Books": 0.8}),
    ]
    for weights, expected in cases:
        recipe = load(None, {"source.name": ("x", ""), "mix": ({"tokens": "1M", "weights": weights}, "")})
        assert recipe.settings.mix.sources == pytest.approx(expected)
        assert recipe.settings.mix.is_budget
    refused = {
        "run,Web\nr1,1\nr2,1\n": "has 2 mixes; say which",
        "domain,weight\nWeb,0.7\n": "add up to 0.7, not to 1",
        "domain,weight\nWeb,0.7\nWeb,0.3\n": "line 3: 'Web' is named twice",
        "domain,weight\nWeb,lots\n": "line 2: the weight of 'Web' is 'lots'",
        "domain,weight\nWeb,1,2\n": "line 2: 3 values, the first line names 2",
        "": "no line of weights",
    }
    for text, words in refused.items():
        long.write_text(text)
        with pytest.raises(ConfigError, match=words):
            load(None, {"source.name": ("x", ""), "mix.weights": (str(long), "")})
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(None, {"source.name": ("x", ""), "mix.weights": (str(tmp_path / "none.csv"), "")})
    with pytest.raises(ConfigError, match="both say the shares"):
        load(None, {"source.name": ("x", ""), "mix": ({"weights": str(wide), "sources": {"a": 1}}, "")})


# In the shards ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixes")
    corpus(root / "in.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vsl, "WINDOW_TOKENS", 4000)  # several in a phase
        for form in ("sample", "vsl", "corpus"):
            made(root / "in.jsonl", root / form, format=form)
    return root


def inputs_in_order(out: Path, length: int) -> list[np.ndarray[Any, Any]]:
    """The input ids of each sample in the order of the shards, as the HDF5 library reads them."""
    rows = []
    for path in sorted((out / "train").glob("*.h5")):
        with h5py.File(path) as file:
            rows.append(file["data"][:])
    data = np.concatenate(rows)
    if data.ndim == 1:
        return [data[i : i + 1] for i in range(len(data))]
    return [row[0][row[1] == 1] for row in data]


def token_names() -> dict[int, str]:
    from tests.lineage.corpora import tokenizer

    return {int(tokenizer().encode_batch([word])[0][0]): source for source, word in WORDS.items()}


@pytest.mark.parametrize("form", ["sample", "vsl", "corpus"])
def test_any_prefix_of_the_order_has_the_shares_that_are_shown(
    folder: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vsl, "WINDOW_TOKENS", 4000)
    out, names = folder / form, token_names()
    [of_set] = open_dataset(out)
    view = of_set.splits["train"]
    samples = inputs_in_order(out, 64)
    first, second = view.entry.phases
    for part in (0.0, 0.13, 0.5, 0.7, 0.85, 1.0):
        rows = int(part * len(samples))
        ids = np.concatenate([np.empty(0, np.int64), *samples[:rows]])
        seen = Counter(names.get(int(token), "EOS") for token in ids.tolist())
        found = prefix.prefix_of(view, part)
        assert (found.rows, found.of, found.tokens) == (rows, len(samples), len(ids))
        for source in WORDS:
            ends = found.sources[source].tokens - seen[source]  # a document's EOS counts as its own
            assert 0 <= ends <= (0 if form == "vsl" else seen["EOS"])
    # Code is in the second phase only: in the sample that the border is in, and behind it.
    edge = first.rows - (form == "sample")
    is_code = [any(names.get(token) == "Code" for token in row.tolist()) for row in samples]
    assert not any(is_code[:edge])
    assert sum(is_code) > 0.4 * second.rows
    wanted = {"Web": 0.6, "Books": 0.4}, {"Web": 0.3, "Books": 0.2, "Code": 0.5}
    for phase, shares in zip((first, second), wanted, strict=True):
        for source, share in shares.items():
            assert phase.sources[source].asked == pytest.approx(
                share * (21_000, 9_000)[phase is second], abs=1
            )
            assert phase.sources[source].tokens == pytest.approx(phase.sources[source].asked, abs=150)
    assert ledger.imbalances(of_set.manifest.ledger) == []
    in_ledger = {row.source: row.out.tokens for row in of_set.manifest.rows("shuffle", "train")}
    in_phases = Counter[str]()
    for phase in view.entry.phases:
        in_phases.update({source: amounts.tokens for source, amounts in phase.sources.items()})
    assert in_ledger == in_phases
    assert [check for check in verify.verify(out, lambda _: None) if check.ok is False] == []


def test_a_training_run_sees_them_in_that_order_and_is_warned_of_another(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"data_dir": str(folder / "sample/train"), "batch_size": 10, "shuffle": False}
    delivered = [
        row for batch in GptHDF5MapDataProcessor(config).create_dataloader() for row in batch["input_ids"]
    ]
    samples = inputs_in_order(folder / "sample", 64)
    for row, expected in zip(delivered, samples, strict=False):
        assert row[: len(expected)].tolist() == expected.tolist()
    assert not [record for record in caplog.records if "phases" in record.message]
    GptHDF5MapDataProcessor({**config, "shuffle": True})
    assert [record for record in caplog.records if "shuffle mixes the phases" in record.message]


def test_the_bytes_do_not_depend_on_workers_or_memory(folder: Path) -> None:
    contents = []
    different: list[dict[str, Any]] = [{}, {"run__workers": 2, "run__memory": "100kB"}]
    for number, options in enumerate(different):
        out = made(
            folder / "in.jsonl",
            folder / f"again{number}",
            shuffle="none" if number > 5 else "samples",
            **options,
        )
        contents.append(
            {
                path.relative_to(out).as_posix(): path.read_bytes()
                for path in sorted(out.rglob("*"))
                if path.is_file() and ".work" not in path.parts and path.name != "provenance.json"
            }
        )
    assert contents[0] == contents[1]


def test_sets_with_shares_have_their_part_of_the_budget_and_validation_none(folder: Path) -> None:
    out = made(
        folder / "in.jsonl", folder / "sets", seq_len=["64:0.5", "32:0.25"], shuffle="none", holdout__fraction=0.1
    )  # fmt: skip
    for name, tokens in (("msl64", 15_000), ("msl32", 7_500)):
        splits = dataset.read_set(out / name).splits
        assert splits["train"].stream_tokens == pytest.approx(tokens, abs=400)
        assert len(splits["train"].phases) == 2
        assert splits["validation"].phases == []
    assert [check for check in verify.verify(out, lambda _: None) if check.ok is False] == []


def test_a_plan_and_a_run_refuse_the_same(folder: Path, tmp_path: Path) -> None:
    options = {"mix": ({"tokens": "2M", "sources": {"Code": "30%"}}, "test"), "dedupe.method": ("none", "test"),
               "source.name": (str(folder / "in.jsonl"), "test"), "run.out": (str(tmp_path / "out"), "test")}  # fmt: skip
    plan = planning.measure(load(None, options))
    assert [stop.exit_code for stop in plan.stops] == [2]
    with pytest.raises(ConfigError) as refused:
        prepare(folder / "in.jsonl", tmp_path / "out", mix=options["mix"][0], dedupe__method="none")
    assert plan.stops[0].message.startswith(str(refused.value))
    assert "Code: 30% of 2,000,000 tokens are 600,000" in str(refused.value)


def test_documents_can_be_forgotten_out_of_phases(folder: Path) -> None:
    out = made(folder / "in.jsonl", folder / "forgotten", format="vsl")
    before = dataset.read_set(out).splits["train"]
    forget(out, [make("where", "source = 'Code' AND tokens < 40")], how="remove")
    after = dataset.read_set(out).splits["train"]
    assert [phase.sources["Web"] for phase in after.phases] == [
        phase.sources["Web"] for phase in before.phases
    ]
    assert after.phases[1].tokens < before.phases[1].tokens
    assert [check for check in verify.verify(out, lambda _: None) if check.ok is False] == []


def test_phases_that_are_not_those_of_the_documents_are_found(folder: Path) -> None:
    out = made(folder / "in.jsonl", folder / "changed")
    manifest = dataset.read_set(out)
    entry = manifest.splits["train"]
    phases = list(entry.phases)
    web, books = phases[0].sources["Web"], phases[0].sources["Books"]
    wrong = {
        "Web": msgspec.structs.replace(web, tokens=web.tokens - 5),
        "Books": msgspec.structs.replace(books, tokens=books.tokens + 5),
    }
    phases[0] = msgspec.structs.replace(phases[0], sources=wrong)
    splits = manifest.splits | {"train": msgspec.structs.replace(entry, phases=phases)}
    (out / "dataset.json").write_bytes(dataset.encode(msgspec.structs.replace(manifest, splits=splits)))
    failed = {check.name: check for check in verify.verify(out, lambda _: None) if check.ok is False}
    assert "phases[0]: Books has" in f"{failed['mix'].detail} {failed['mix'].place}"
    with pytest.raises(ValueError, match="sources have"):
        msgspec.structs.replace(phases[0], tokens=phases[0].tokens + 1)
    with pytest.raises(ValueError, match="phases have"):
        msgspec.structs.replace(entry, phases=entry.phases[:1] * 2)


def test_the_command_shows_a_prefix(folder: Path) -> None:
    result = CliRunner().invoke(cli, ["inspect", str(folder / "sample"), "--prefix", "10%"])
    assert "of the order) have" in result.output
    assert "asked" in result.output
    as_json = CliRunner().invoke(cli, ["inspect", str(folder / "sample"), "--prefix", "40", "--json"])
    value = json.loads(as_json.output)
    assert (value["rows"], value["split"], value["tokens"]) == (40, "train", 40 * 64)
    assert value["generation"] == 1
    for part in ("10 %%", "101%", "0.5"):
        with pytest.raises(ConfigError, match="is no part of the samples"):
            prefix.parse_part(part)
    with pytest.raises(ConfigError, match="There is no split 'test'"):
        list(prefix.prefixes(folder / "sample", 1, "test"))
