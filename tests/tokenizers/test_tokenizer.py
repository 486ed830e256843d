"""The tokenizer module against Hugging Face `tokenizers`, used directly."""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
import resource
import string
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from btlm_data.errors import ConfigError, DataError, SourceUnavailable
from btlm_data.tokenizers import Tokenizer, TokenizerSpec, backends, load_tokenizer, splitting
from btlm_data.tokenizers import tokenizer as module
from btlm_data.tokenizers.gpt2 import GPT2_FOLDER
from tests.hub import Hub

# Changes only with the vocabulary, the merges or the rules themselves.
GPT2_FINGERPRINT = "7bb6c2d311d1a2f4599b90686e2f095394fe5e6c4509924c54a0a5c19c7a96d2"

# Short strings that meet every rule of GPT-2's pattern, and single characters of any kind.
WORDS = [
    "'s",
    "'re",
    "'ll",
    "'S",
    "’t",
    "''",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u00a0",
    "\u3000",
    "\u200b",
    "a",
    "the",
    " The",
    "é",
    "e\u0301",
]
WORDS += [
    "中文",
    "한",
    "ا",
    "1",
    "23",
    "٣",
    "½",
    "!",
    "--",
    "_",
    "<|endoftext|>",
    "<|endoftext",
    "😀",
    "👩‍👩‍👧",
    "\x00",
    "\x7f",
    "\ufeff",
    "\ua7cb",
    "\U00016d40",
]
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(WORDS),
        st.characters(exclude_categories=["Cs"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    ),
    max_size=30,
).map("".join)


@pytest.fixture(scope="session")
def gpt2() -> Tokenizer:
    return load_tokenizer("gpt2")


@pytest.fixture(scope="session")
def truth() -> tokenizers.Tokenizer:
    """GPT-2 as its own documentation builds it, without a line of ours."""
    made = tokenizers.Tokenizer(
        models.BPE.from_file(str(GPT2_FOLDER / "vocab.json"), str(GPT2_FOLDER / "merges.txt"))
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    made.encode_special_tokens = True
    return made


def expected(truth: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in truth.encode_batch(list(texts), add_special_tokens=False)]


def as_lists(encoded: tuple[npt.NDArray[Any], npt.NDArray[np.int64]]) -> list[list[int]]:
    ids, offsets = encoded
    assert offsets[0] == 0
    assert offsets[-1] == len(ids)
    return [ids[a:b].tolist() for a, b in pairwise(offsets)]


def test_gpt2_is_known(gpt2: Tokenizer) -> None:
    assert (gpt2.name, gpt2.eos_id, gpt2.vocab_size, gpt2.backend) == ("gpt2", 50256, 50257, "fastokens")
    assert gpt2.fingerprint == GPT2_FINGERPRINT
    ids, offsets = gpt2.encode_batch(["Hello world", "", "Hello"])
    assert ids.tolist() == [15496, 995, 15496]
    assert offsets.tolist() == [0, 2, 2, 3]
    assert ids.dtype == gpt2.dtype == np.uint16
    assert offsets.dtype == np.int64


def test_no_texts_give_no_ids(gpt2: Tokenizer) -> None:
    ids, offsets = gpt2.encode_batch([])
    assert ids.tolist() == []
    assert ids.dtype == np.uint16
    assert offsets.tolist() == [0]


def test_special_tokens_in_text_are_text(gpt2: Tokenizer, truth: tokenizers.Tokenizer) -> None:
    texts = ["<|endoftext|>", "a<|endoftext|>b", "<|endoftext|><|endoftext|>", " <|endoftext|>\n"]
    got = as_lists(gpt2.encode_batch(texts))
    assert got == expected(truth, texts)
    assert all(gpt2.eos_id not in ids for ids in got)
    assert [gpt2.decode(ids) for ids in got] == texts


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(TEXTS, min_size=10, max_size=10))
def test_equals_the_truth(gpt2: Tokenizer, truth: tokenizers.Tokenizer, texts: list[str]) -> None:
    assert as_lists(gpt2.encode_batch(texts)) == expected(truth, texts)


@pytest.mark.stress
@settings(max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(TEXTS, min_size=10, max_size=10))
def test_equals_the_truth_on_50_000_strings(
    gpt2: Tokenizer, truth: tokenizers.Tokenizer, texts: list[str]
) -> None:
    assert as_lists(gpt2.encode_batch(texts)) == expected(truth, texts)


def in_context(points: Sequence[int], context: Callable[[str], str]) -> list[str]:
    """Texts of 64 code points each, surrogates left out."""
    return [
        "".join(context(chr(p)) for p in points[i : i + 64] if not 0xD800 <= p < 0xE000)
        for i in range(0, len(points), 64)
    ]


def test_every_code_point_of_the_first_two_planes_before_a_contraction(
    gpt2: Tokenizer, truth: tokenizers.Tokenizer
) -> None:
    texts = in_context(range(0x20000), lambda c: f"{c}'s")
    assert as_lists(gpt2.encode_batch(texts)) == expected(truth, texts)


@pytest.mark.stress
@pytest.mark.parametrize("context", ["{}'s", "a{}b", "1{}1", " {} ", "'{}", "\n{}\n", "!{}?"])
def test_every_code_point_in_context(gpt2: Tokenizer, truth: tokenizers.Tokenizer, context: str) -> None:
    texts = in_context(range(0x110000), context.format)
    assert as_lists(gpt2.encode_batch(texts)) == expected(truth, texts)


def test_decode_gives_the_text_back(gpt2: Tokenizer) -> None:
    text = "naïve 中文 😀 <|endoftext|>\n\n  x = 1"
    ids, _ = gpt2.encode_batch([text])
    assert gpt2.decode(ids) == text
    assert gpt2.token_text(50256) == "<|endoftext|>"
    assert gpt2.token_text(262) == " the"
    with pytest.raises(ValueError, match="no token 50257"):
        gpt2.token_text(50257)


# Long texts


PATTERNS = {
    "llama3": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    "qwen2": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    "o200k": "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
}
CORPUS = [
    "The quick brown fox doesn't jump; it's 12345 years old, they've said. What we'll do is up to you, and you'd know.",
    "naïve été ÉTÉ Straße 中文字 한국어 русский текст",
    "for i in range(10):\n    print(i)\n\n\t# done  \r\n",
]


def byte_level_bpe(
    pre_tokenizer: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None = None
) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizer
    made.decoder = decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    made.train_from_iterator(CORPUS * 3, trainer)
    return made


def by_pattern(name: str) -> tokenizers.Tokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
    return byte_level_bpe(
        pre_tokenizers.Sequence([split, byte_level]), normalizers.NFC() if name == "qwen2" else None
    )


def gpt_neox() -> tokenizers.Tokenizer:
    made = byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC())
    made.add_tokens([tokenizers.AddedToken(" " * n, normalized=True) for n in (2, 4)])
    return made


def sentencepiece_like() -> tokenizers.Tokenizer:
    """Trained word by word, as SentencePiece is; unknown characters become bytes."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = ["▁", *string.ascii_letters]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def llama2() -> tokenizers.Tokenizer:
    made = sentencepiece_like()
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = None
    return made


def mistral() -> tokenizers.Tokenizer:
    made = sentencepiece_like()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return made


def gemma() -> tokenizers.Tokenizer:
    made = sentencepiece_like()
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return made


def word_level() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(
        CORPUS, trainers.WordLevelTrainer(special_tokens=["[UNK]", "[EOS]"], show_progress=False)
    )
    return made


OTHERS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "llama3": lambda: by_pattern("llama3"),
    "qwen2": lambda: by_pattern("qwen2"),
    "o200k": lambda: by_pattern("o200k"),
    "gpt_neox": gpt_neox,
    "llama2": llama2,
    "mistral": mistral,
    "gemma": gemma,
    "word_level": word_level,
}


@pytest.fixture(scope="session", params=sorted(OTHERS))
def other(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    path = tmp_path_factory.mktemp("tokenizers") / f"{request.param}.json"
    made = OTHERS[request.param]()
    made.save(str(path))
    made.encode_special_tokens = True
    return load_tokenizer(str(path)), made


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(TEXTS, min_size=5, max_size=5))
def test_other_tokenizers_equal_the_truth(
    other: tuple[Tokenizer, tokenizers.Tokenizer], texts: list[str]
) -> None:
    ours, theirs = other
    texts = [*texts, *CORPUS, "<|endoftext|></s>"]
    assert as_lists(ours.encode_batch(texts)) == expected(theirs, texts)


# Runs of one class (long words to the splitter), and what stands between them.
LONG_TEXTS = st.lists(
    st.one_of(
        st.sampled_from([*WORDS, " a", "b ", "x y z ", "foo bar ", "，", "。字", "字，", "a'", "'"]),
        st.builds(
            lambda unit, n: unit * n,
            st.sampled_from(["a", "ab", "1", " ", "\n", "!", "'", "\u200b", "中", "é", "the", "<|", "😀"]),
            st.integers(1, 60),
        ),
    ),
    min_size=1,
    max_size=12,
).map("".join)


@pytest.fixture(params=[5, 16, 50])
def small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Make every text of more than a few characters a long one."""
    monkeypatch.setattr(splitting, "MAX_PIECE_CHARS", request.param)
    monkeypatch.setattr(splitting, "_OVERLAP_BYTES", max(1, request.param // 4))
    return int(request.param)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(LONG_TEXTS, min_size=3, max_size=3))
def test_pieces_do_not_change_the_result(
    gpt2: Tokenizer, truth: tokenizers.Tokenizer, small_pieces: int, texts: list[str]
) -> None:
    assert as_lists(gpt2.encode_batch(texts)) == expected(truth, texts)
    for text in texts:
        pieces = [piece for piece, _ in gpt2._splitter.pieces(text, lambda: gpt2._reference)]
        assert "".join(pieces) == text
        assert all(
            len(piece) <= small_pieces or is_word
            for piece, is_word in gpt2._splitter.pieces(text, lambda: gpt2._reference)
        )


@pytest.mark.stress
@settings(
    max_examples=10_000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(LONG_TEXTS, min_size=3, max_size=3))
def test_pieces_do_not_change_the_result_often(
    gpt2: Tokenizer, truth: tokenizers.Tokenizer, small_pieces: int, texts: list[str]
) -> None:
    assert as_lists(gpt2.encode_batch(texts)) == expected(truth, texts)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(LONG_TEXTS, min_size=3, max_size=3))
def test_pieces_do_not_change_other_tokenizers(
    other: tuple[Tokenizer, tokenizers.Tokenizer], small_pieces: int, texts: list[str]
) -> None:
    ours, theirs = other
    assert as_lists(ours.encode_batch(texts)) == expected(theirs, texts)


def test_known_patterns_are_cut_and_unknown_ones_are_not(
    other: tuple[Tokenizer, tokenizers.Tokenizer], small_pieces: int
) -> None:
    ours, theirs = other
    pieces = list(ours._splitter.pieces("some words of text " * 20, lambda: ours._reference))
    assert (len(pieces) > 1) == ("WordLevel" not in theirs.to_str())


@pytest.mark.parametrize("run", ["a", "1", " ", "\n", "!", "\u200b", "中", "e\u0301", "ACGT", "😀"])
def test_long_runs_equal_the_truth(gpt2: Tokenizer, truth: tokenizers.Tokenizer, run: str) -> None:
    text = f"Start {run * (600_000 // len(run))} end"
    assert as_lists(gpt2.encode_batch([text, "after"])) == expected(truth, [text, "after"])


def test_calls_are_bounded_and_cover_all_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "MAX_PIECE_CHARS", 10)
    monkeypatch.setattr(module, "MAX_CALL_CHARS", 25)
    monkeypatch.setattr(module, "MAX_CALL_TEXTS", 4)
    texts = ["x" * n for n in (11, 3, 10, 10, 10, 0, 0, 0, 0, 0, 12, 30, 1)]
    calls = list(module._calls(texts))
    assert [i for first, last in calls for i in range(first, last)] == list(range(len(texts)))
    for first, last in calls:
        assert last - first <= 4
        assert sum(map(len, texts[first:last])) <= 25 or last - first == 1
        assert last - first == 1 or max(map(len, texts[first:last])) <= 10


@pytest.mark.stress
def test_a_300_mb_document_takes_seconds_and_bounded_memory(gpt2: Tokenizer) -> None:
    for unit in ["The quick brown fox doesn't jump over 12 dogs.\n", "a", "中文字，"]:
        text = unit * (300_000_000 // len(unit.encode()))
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        ids, _ = gpt2.encode_batch([text])
        seconds, grown = (
            time.perf_counter() - start,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before,
        )
        assert seconds < 60
        # The ids themselves, twice (pieces and the whole), and a piece's work.
        assert grown * 1024 < 2 * ids.nbytes + 300_000_000


# What is loaded, and what is not


def test_a_tokenizer_json_and_its_folder_give_the_same_fingerprint(
    gpt2: Tokenizer, truth: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    truth.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    for spec in (str(tmp_path), str(tmp_path / "tokenizer.json"), str(GPT2_FOLDER)):
        loaded = load_tokenizer(spec)
        assert (loaded.eos_id, loaded.backend, loaded.vocab_size) == (50256, "fastokens", 50257)
        ids, _ = loaded.encode_batch(["Hello world<|endoftext|>"])
        assert ids.tolist() == gpt2.encode_batch(["Hello world<|endoftext|>"])[0].tolist()
    by_folder, by_file = load_tokenizer(str(tmp_path)), load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert by_folder.fingerprint == by_file.fingerprint


def test_merges_written_as_strings_or_pairs_have_one_fingerprint(tmp_path: Path) -> None:
    made = byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))
    raw = json.loads(made.to_str())
    prints = set()
    for merges in ([list(m) for m in raw["model"]["merges"]], [" ".join(m) for m in raw["model"]["merges"]]):
        raw["model"]["merges"] = merges
        raw["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
        (tmp_path / "t.json").write_text(json.dumps(raw))
        loaded = load_tokenizer(str(tmp_path / "t.json"))
        prints.add(loaded.fingerprint)
        assert len(loaded.encode_batch(["far more than three tokens, none cut off"])[0]) > 3
    assert len(prints) == 1
    raw["model"]["merges"] = raw["model"]["merges"][:-1]
    (tmp_path / "t.json").write_text(json.dumps(raw))
    assert load_tokenizer(str(tmp_path / "t.json")).fingerprint not in prints


def test_a_large_vocabulary_takes_uint32(tmp_path: Path) -> None:
    vocab = {f"w{i}": i for i in range(70_000)} | {"[UNK]": 70_000, "</s>": 70_001}
    made = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "t.json"))
    loaded = load_tokenizer(str(tmp_path / "t.json"), backend="reference")
    ids, _ = loaded.encode_batch(["w69999 w1"])
    assert ids.dtype == loaded.dtype == np.uint32
    assert ids.tolist() == [69_999, 1]


def test_an_unsupported_tokenizer_falls_back_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    word_level().save(str(tmp_path / "t.json"))
    with caplog.at_level(logging.WARNING):
        loaded = load_tokenizer(str(tmp_path / "t.json"))
    assert loaded.backend == "tokenizers"
    assert "running on `tokenizers`" in caplog.text
    with pytest.raises(ConfigError, match=r"fast backend cannot run .*backend=auto"):
        load_tokenizer(str(tmp_path / "t.json"), backend="fast")


def test_the_self_check_finds_a_backend_that_differs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    honest = backends.Fast.encode

    def newer_unicode(
        self: backends.Fast, texts: Sequence[str]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """As if U+A7CB were a letter, which it is since Unicode 16."""
        return honest(self, [text.replace("\ua7cb'", "\ua7cax'") for text in texts])

    monkeypatch.setattr(backends.Fast, "encode", newer_unicode)
    with caplog.at_level(logging.WARNING):
        assert load_tokenizer("gpt2").backend == "tokenizers"
    assert "gives other ids for" in caplog.text


def test_asking_for_the_reference_gives_it() -> None:
    loaded = load_tokenizer("gpt2", backend="reference")
    assert loaded.backend == "tokenizers"
    assert loaded.encode_batch(["Hello world"])[0].tolist() == [15496, 995]


def write(path: Path, content: str) -> str:
    path.write_text(content)
    return str(path)


def test_what_cannot_be_read_is_a_config_error(tmp_path: Path, truth: tokenizers.Tokenizer) -> None:
    whole = truth.to_str()
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_tokenizer(write(tmp_path / "cut.json", whole[: len(whole) // 2]))
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_tokenizer(write(tmp_path / "empty.json", ""))
    with pytest.raises(ConfigError, match=r"not a tokenizer that can be used.*model"):
        load_tokenizer(write(tmp_path / "foreign.json", '{"model": 3}'))
    with pytest.raises(ConfigError, match="`tokenizers` cannot use"):
        load_tokenizer(write(tmp_path / "merges.json", whole.replace('["Ġ","t"]', '["Ġ","nowhere"]')))
    with pytest.raises(ConfigError, match="There is no tokenizer at"):
        load_tokenizer(str(tmp_path / "missing.json"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"holds neither tokenizer.json nor"):
        load_tokenizer(str(tmp_path / "folder"))


# From the hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def on_hub(text: str = "", **config: str) -> dict[str, bytes]:
    tokenizer = byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)).to_str() + text
    return {"tokenizer.json": tokenizer.encode()} | (
        {"tokenizer_config.json": json.dumps(config).encode()} if config else {}
    )


def test_a_hub_id_is_fetched_once_and_pinned(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hub.add("org/model", on_hub(eos_token="<|endoftext|>"))
    second = hub.add("org/model", on_hub())
    newest, pinned = load_tokenizer("org/model"), load_tokenizer("org/model", revision=first)
    assert (newest.revision, pinned.revision) == (second, first)
    assert newest.fingerprint == pinned.fingerprint
    assert newest.token_text(newest.eos_id) == "<|endoftext|>"
    monkeypatch.setattr(module, "_OPEN", {})
    count = len(hub.requests)
    assert newest.spec.load().encode_batch(["a"])[0].tolist() == newest.encode_batch(["a"])[0].tolist()
    assert all(request.method == "HEAD" for request in hub.requests[count:])


def test_what_the_hub_refuses_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/gated", on_hub(), gated=True)
    hub.add("org/torn", on_hub(text="}"))
    hub.add("org/other", {"README.md": b"no tokenizer"})
    with pytest.raises(SourceUnavailable, match=r"is gated. Accept its terms"):
        load_tokenizer("org/gated")
    with pytest.raises(ConfigError, match="There is no tokenizer org/none"):
        load_tokenizer("org/none")
    with pytest.raises(ConfigError, match=r"holds no tokenizer.json"):
        load_tokenizer("org/other")
    with pytest.raises(ConfigError, match="has no revision v9"):
        load_tokenizer("org/torn", revision="v9")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_tokenizer("org/torn")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(
        time, "sleep", lambda seconds: None
    )  # the client tries five times, with growing pauses
    with pytest.raises(SourceUnavailable, match="hub cannot be reached"):
        load_tokenizer("org/unreachable")


# Other processes


def encode_elsewhere(spec: TokenizerSpec) -> list[int]:
    ids: list[int] = spec.load().encode_batch(["in another process"])[0].tolist()
    return ids


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_spec_loads_in_another_process(gpt2: Tokenizer, method: str) -> None:
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert (
            pool.apply(encode_elsewhere, [gpt2.spec]) == gpt2.encode_batch(["in another process"])[0].tolist()
        )


def test_a_pickled_tokenizer_is_its_spec(gpt2: Tokenizer) -> None:
    pickled = pickle.dumps(gpt2)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).spec == gpt2.spec


def test_a_tokenizer_that_changed_during_the_run_is_refused(tmp_path: Path) -> None:
    byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)).save(str(tmp_path / "t.json"))
    spec = load_tokenizer(str(tmp_path / "t.json")).spec
    module._OPEN.pop(spec)
    byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)).save(str(tmp_path / "t.json"))
    with pytest.raises(DataError, match="changed during the run"):
        spec.load()
    (tmp_path / "t.json").unlink()
    with pytest.raises(DataError, match="no longer at"):
        spec.load()


def test_loading_is_quick() -> None:
    """A load with its self-check takes half a second where this was written; ten times that is a mistake."""
    start = time.process_time()
    load_tokenizer("gpt2")
    assert time.process_time() - start < 5


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_stays_flat_over_many_different_words(gpt2: Tokenizer) -> None:
    generator = np.random.default_rng(0)

    def resident_kb() -> int:
        return next(
            int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmRSS")
        )

    def some_mb() -> None:
        letters = generator.integers(97, 123, 4_000_000, np.uint8)
        letters[generator.integers(0, len(letters), len(letters) // 7)] = 32
        gpt2.encode_batch([letters.tobytes().decode()])

    for _ in range(5):
        some_mb()
    before = resident_kb()
    for _ in range(15):
        some_mb()
    assert resident_kb() - before < 40_000
