"""The signal `perplexity`: values of KenLM, by hand and by a twin of back-off scoring; models as outside data."""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.cleaning import perplexity
from btlm_data.cleaning.document import Documents
from btlm_data.cleaning.perplexity import ccnet_normalized
from btlm_data.cleaning.signal_parameters import sha256_of_model
from btlm_data.cleaning.signals import plan_signals
from btlm_data.errors import ConfigError, DataError
from btlm_data.inspection import verify
from btlm_data.lineage.reselect import reselect
from tests.stages.runs import prepare

GOLDEN = Path(__file__).parent.parent / "golden" / "kenlm"
Model = dict[tuple[str, ...], tuple[float, float]]  # an n-gram's log10 probability and back-off weight


def needs_packages() -> None:
    for package in ("kenlm", "sentencepiece"):
        pytest.importorskip(package, reason="needs pip install '.[perplexity]', built from source")


def train(sentences: list[list[str]]) -> Model:
    """A trigram model by discounted counts; what matters is only that its numbers are many."""
    counts: Counter[tuple[str, ...]] = Counter()
    for sentence in sentences:
        words = ["<s>", *sentence, "</s>"]
        for order in (1, 2, 3):
            counts.update(tuple(words[at : at + order]) for at in range(len(words) - order + 1))
    total = sum(count for gram, count in counts.items() if len(gram) == 1)
    model: Model = {("<unk>",): (-2.5, 0.0)}
    for gram, count in counts.items():
        of = counts[gram[:-1]] if len(gram) > 1 else total
        weight = -0.1 * len(gram) - 0.01 * count
        model[gram] = (round(math.log10(0.9 * count / of), 4), round(weight, 4))
    return model


def write_arpa(path: Path, model: Model) -> None:
    lines = ["\\data\\"]
    orders = [sorted(gram for gram in model if len(gram) == order) for order in (1, 2, 3)]
    lines += [f"ngram {order}={len(grams)}" for order, grams in enumerate(orders, 1)]
    for order, grams in enumerate(orders, 1):
        lines += ["", f"\\{order}-grams:"]
        for gram in grams:
            share, weight = model[gram]
            lines.append(f"{share}\t{' '.join(gram)}" + (f"\t{weight}" if order < 3 else ""))
    path.write_text("\n".join([*lines, "", "\\end\\", ""]))


def sentence_score(model: Model, words: list[str]) -> float:
    """Back-off scoring as Katz (1987) has it: the longest n-gram there is, and the weights of the contexts left."""

    def share(context: tuple[str, ...], word: str) -> float:
        if (*context, word) in model:
            return model[*context, word][0]
        if not context:
            return model["<unk>",][0]
        return model.get(context, (0.0, 0.0))[1] + share(context[1:], word)

    known = [word if (word,) in model else "<unk>" for word in ["<s>", *words, "</s>"]]
    return sum(share(tuple(known[max(0, at - 2) : at]), known[at]) for at in range(1, len(known)))


def measured(texts: list[str], **parameters: Any) -> list[float]:
    count = len(texts)
    signals = plan_signals([{"perplexity": parameters}])
    values = signals.measure(Documents(texts, ["a"] * count, ["docs.jsonl"] * count, list(range(count))))
    assert len(values) == 1
    return [float(value) for value in np.asarray(next(iter(values.values())))]


@pytest.mark.parametrize("file", ["three.arpa", "probing.bin", "trie.bin"])
def test_values_computed_by_hand(file: str) -> None:
    needs_packages()
    model = str(GOLDEN / file)
    # a|<s>, b|<s> a, </s>|a b with the weight of "a b": three words with the end.
    first = 0.4 + 0.05 + 0.1 + 0.25
    # b|<s> backs off to b; a|b to a; x is unknown; </s> after it.
    second = (0.5 + 1.1) + (0.2 + 0.9) + (0.3 + 2.0) + 0.7
    assert measured(["a b", "b a x", "A\tB", "á\x07 b"], model=model) == pytest.approx(
        [10 ** (first / 3), 10 ** (second / 4), 10 ** ((0.5 + 2.0 + 0.7) / 2), 10 ** (first / 3)], rel=1e-5
    )
    # Lines are sentences of their own, and blank lines none.
    values = measured(["a b\n \nb a x\r\n", "A b", ""], model=model, normalize="none")
    assert values[0] == pytest.approx(10 ** ((first + second) / 7), rel=1e-5)
    assert values[1] == pytest.approx(10 ** ((0.5 + 2.0 + 1.1 + 0.25) / 3), rel=1e-5)
    assert values[2] == pytest.approx(10 ** ((0.5 + 0.7) / 1), rel=1e-5)
    assert measured(["a b x x x"], model=model, max_chars=3) == pytest.approx([10 ** (first / 3)], rel=1e-5)


WORDS = st.lists(
    st.sampled_from(["der", "fluss", "ist", "breit", "und", "<s>", "</s>", "<unk>", "я"]), max_size=7
)


@settings(max_examples=25, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=6), st.lists(WORDS, max_size=5))
def test_values_are_those_of_back_off(
    tmp_path_factory: pytest.TempPathFactory, corpus: list[list[str]], asked: list[list[str]]
) -> None:
    needs_packages()
    from btlm_data.cleaning.perplexity import Perplexity, load_models

    special = {"<s>", "</s>", "<unk>"}
    model = train([[word for word in words if word not in special] for words in corpus])
    path = tmp_path_factory.mktemp("model") / "model.arpa"
    write_arpa(path, model)
    signal = Perplexity(model=str(path), normalize="none")
    models = load_models("", str(path), sha256_of_model(path))
    for words in asked:
        # What kenlm does with its own signs inside a sentence is not the twin's subject; that it does not fail is.
        value = signal._perplexity(models, " ".join(words))
        if not special & set(words):
            score = sentence_score(model, words)
            assert value == pytest.approx(10 ** (-score / (len(words) + 1)), rel=1e-4)


def ccnet_twin(text: str) -> str:
    """In CCNet's order, one step after the other."""
    text = text.strip().lower()
    text = "".join(sign for sign in unicodedata.normalize("NFD", text) if unicodedata.category(sign) != "Mn")
    text = "".join("0" if sign.isdecimal() else sign for sign in text)
    for sign, ascii_sign in {
        "，": ",",
        "。": ".",
        "„": '"',
        "»": '"',
        "’": "'",
        "—": " - ",
        "…": "...",
    }.items():
        text = text.replace(sign, ascii_sign)
    return "".join(sign for sign in text if not (ord(sign) < 32 or 127 <= ord(sign) < 160))


@settings(deadline=None)
@given(
    st.text(
        st.one_of(st.sampled_from("aÄéİ１٣9，。„»’—…\n\t\x85\u0301한"), st.characters(categories=["L", "N"]))
    )
)
def test_normalizing_is_that_of_ccnet(text: str) -> None:
    assert ccnet_normalized(text) == ccnet_twin(text)


def test_a_run_keeps_it_with_pieces_and_reselect_uses_it(tmp_path: Path) -> None:
    needs_packages()
    import sentencepiece

    sentences = [["the", "river", "is", "wide"], ["the", "cat", "sat"], ["a", "river", "sat", "wide"]]
    texts = [
        "\n".join(" ".join(sentences[(number + at) % 3]) for at in range(number % 9 + 5)) + f" Nº {number}…"
        for number in range(60)
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(map(ccnet_normalized, texts)),
        model_prefix=str(tmp_path / "pieces"),
        model_type="char",
        vocab_size=24,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = [["▁", *"▁".join(words)] for words in sentences]
    model = train(pieces)
    write_arpa(tmp_path / "en.arpa", model)
    source = tmp_path / "docs.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    annotate = [
        {
            "perplexity": {
                "model": str(tmp_path / "en.arpa"),
                "sentencepiece": str(tmp_path / "pieces.model"),
                "name": "of_pieces",
            }
        },
        {"perplexity": str(tmp_path / "en.arpa")},
    ]
    options: dict[str, Any] = {
        "clean__min_chars": 0,
        "dedupe__method": "none",
        "seq_len": 16,
        "annotate": annotate,
    }
    prepare(source, tmp_path / "out", **options)
    prepare(source, tmp_path / "two", **options, run__workers=2)
    listed = (tmp_path / "out/train/documents.parquet").read_bytes()
    assert listed == (tmp_path / "two/train/documents.parquet").read_bytes()
    rows = pq.read_table(tmp_path / "out/train/documents.parquet").to_pylist()
    assert len(rows) == 60
    for row in rows:
        line = ccnet_twin(texts[row["line"]])
        for name, words in (
            ("of_pieces", ["▁", *line.replace(" ", "▁").replace("º", "o")]),
            ("perplexity", line.split()),
        ):
            expected = 10 ** (-sentence_score(model, words) / (len(words) + 1))
            assert row[name] == pytest.approx(expected, rel=1e-4)
    assert [check for check in verify.verify(tmp_path / "out", lambda _: None) if check.ok is False] == []
    limit = sorted(row["of_pieces"] for row in rows)[20]
    outcome = reselect(tmp_path / "out", f"of_pieces < {limit!r}", tmp_path / "chosen")
    assert outcome.documents == sum(row["of_pieces"] < limit for row in rows) > 0


def test_what_is_no_model_is_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_packages()
    monkeypatch.chdir(tmp_path)
    whole = (GOLDEN / "trie.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[:-100])
    pointers = bytearray(whole)
    pointers[214] ^= 0x80
    (tmp_path / "dies.bin").write_bytes(pointers)
    (tmp_path / "other.txt").write_text("no model\n")
    (tmp_path / "cut.arpa").write_text((GOLDEN / "three.arpa").read_text()[:150])
    for entry, message in [
        ("missing.bin", "missing.bin cannot be read"),
        ("other.txt", "is no model of KenLM, or is damaged"),
        ("cut.bin", "is no model of KenLM, or is damaged .*size"),
        ("cut.arpa", "is no model of KenLM, or is damaged .*End of file"),
        ("dies.bin", "a process that read the model .*dies.bin died of it"),
        ({"model": str(GOLDEN / "trie.bin"), "sentencepiece": "other.txt"}, "no model of SentencePiece"),
        ({"model": str(GOLDEN / "trie.bin"), "name": "tokens"}, "has a column 'tokens' already"),
    ]:
        with pytest.raises(ConfigError, match=f"annotate.*{message}"):
            plan_signals([{"perplexity": entry}])


def test_a_model_is_what_the_plan_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_packages()
    path = tmp_path / "model.bin"
    path.write_bytes((GOLDEN / "trie.bin").read_bytes())
    signals = plan_signals([{"perplexity": str(path)}])
    elsewhere = plan_signals([{"perplexity": str(GOLDEN / "trie.bin")}])
    assert signals.fingerprint == elsewhere.fingerprint
    assert signals.fingerprint != plan_signals([{"perplexity": str(GOLDEN / "probing.bin")}]).fingerprint
    path.write_bytes((GOLDEN / "probing.bin").read_bytes())
    with pytest.raises(DataError, match=r"the model .* has changed since the run was planned"):
        signals.measure(Documents(["a b"], ["a"], ["docs.jsonl"], [0]))
    # A binary of any size is mapped; text is held by every process, and so is a model of pieces.
    monkeypatch.setattr(perplexity, "MAX_ARPA_BYTES", 100)
    monkeypatch.setattr(perplexity, "MAX_PIECES_BYTES", 100)
    plan_signals([{"perplexity": str(GOLDEN / "trie.bin")}])
    arpa = str(GOLDEN / "three.arpa")
    with pytest.raises(ConfigError, match=r"three.arpa is text of \d+ bytes, .* `build_binary`"):
        plan_signals([{"perplexity": arpa}])
    with pytest.raises(ConfigError, match=r"a SentencePiece model has at most 100"):
        plan_signals([{"perplexity": {"model": str(GOLDEN / "trie.bin"), "sentencepiece": arpa}}])


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ConfigError, match=r"perplexity needs the package kenlm.*\[perplexity\]"):
        plan_signals([{"perplexity": "model.bin"}])
