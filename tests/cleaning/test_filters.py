from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.cleaning.document import Documents
from btlm_data.cleaning.filters import modules_named, plan_filters
from btlm_data.errors import ConfigError, InputError

ROOT = Path(__file__).resolve().parents[2]
PROSE = (
    "The old library stood at the end of the street, and every morning the keeper would open the heavy "
    "doors with care. "
    "Children came to read, and some of them would stay until the evening lamps were lit. Nobody could "
    "remember a day "
    "that the place had been closed, not even in the worst winter. It was said that the founder would never "
    "have wanted it."
)


class Record:
    def __init__(self, **fields: Any) -> None:
        self._fields = fields

    def fields(self) -> dict[str, Any]:
        return self._fields


def batch(
    texts: list[str], sources: list[str] | None = None, records: list[Record] | None = None
) -> Documents:
    n = len(texts)
    return Documents(texts, sources or ["web"] * n, ["a.jsonl"] * n, list(range(1, n + 1)), records)


def verdict(spec: Any, text: str, source: str = "web") -> str | None:
    (reason,), _ = plan_filters([spec]).apply(batch([text], [source]))
    return reason


def text_after(spec: Any, text: str) -> str:
    (reason,), (changed,) = plan_filters([spec]).apply(batch([text]))
    assert reason is None
    return changed


def test_lengths() -> None:
    assert verdict({"min_chars": 5}, "1234") == "min_chars"
    assert verdict({"min_chars": 5}, "12345") is None
    assert verdict({"name": "max_chars", "chars": 5}, "123456") == "max_chars"
    assert verdict({"max_chars": {"chars": 5}}, "12345") is None


def test_filters_run_in_order_and_the_first_reason_counts() -> None:
    filters = plan_filters([{"regex": {"remove": "x+"}}, {"min_chars": 3}, {"regex": {"drop": "bad"}}])
    reasons, texts = filters.apply(batch(["xxab", "xxabc", "bad", "fine"]))
    assert reasons == ["min_chars", None, "regex", None]
    assert texts == ["ab", "abc", "bad", "fine"]


def test_regex() -> None:
    assert verdict({"name": "regex", "drop": r"^\d+$"}, "text\n123\n") == "regex"
    assert verdict({"name": "regex", "keep": "needed"}, "nothing") == "regex"
    assert verdict({"name": "regex", "drop": "BAD", "ignore_case": True}, "so bad") == "regex"
    assert text_after({"name": "regex", "remove": r"\[\d+\]"}, "a[1] b[22]") == "a b"


@pytest.mark.parametrize(
    "spec",
    [{"drop": "(a+)+$"}, {"keep": "x(?:[a-z]+[0-9a-z]+)+!"}, {"remove": r"(\s|\s)*;", "ignore_case": True}],
)
def test_an_expression_that_never_ends_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"regex: (drop|keep|remove) takes more than 1 seconds on a run of 40 '.+'"
    ):
        plan_filters([{"regex": spec}])


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("btlm_data.cleaning.rules.regex_trial._SECONDS", 1)


def test_ordinary_expressions_are_not_refused() -> None:
    ordinary = [
        r"^\s*(?:Copyright|©).*?\d{4}.*$",
        r"[\w.+-]+@[\w-]+\.[\w.-]+",
        r"(?:\b\w+\b\W*){3,5}",
        r"https?://\S+",
        r"(.)\1{20,}",
    ]
    for pattern in ordinary:
        plan_filters([{"regex": {"drop": pattern}}, {"regex": {"remove": pattern, "ignore_case": True}}])


# Each text breaks one of the paper's rules and no other: (fault, text).
GOPHER = [
    ("too_few_words", "the house and that " * 12),
    ("words_too_short", "a b the of c " * 20),
    ("words_too_long", "internationalization the of " * 3 + "internationalization " * 60),
    ("too_many_hashes", ("the house of that man # " * 20)),
    ("too_many_ellipses", ("the house of that man ... " * 20)),
    ("too_many_bullet_lines", "- the house of that man\n" * 20),
    ("too_many_ellipsis_lines", ("the house of that man and the small garden behind it…\n" * 2 + "the house of that man and the small garden.\n" * 4) * 3),
    ("too_few_alphabetic_words", "the 1234 and 5678 house " * 20),
    ("too_few_stop_words", "house garden window kitchen " * 20),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "text"), GOPHER, ids=[fault for fault, _ in GOPHER])
def test_gopher_quality_names_the_rule(fault: str, text: str) -> None:
    assert verdict("gopher_quality", text) == f"gopher_quality.{fault}"


def test_gopher_quality_at_its_thresholds() -> None:
    assert verdict("gopher_quality", PROSE) is None
    assert verdict("gopher_quality", "the and " + "garden " * 48) is None
    assert verdict("gopher_quality", "the and " + "garden " * 47) == "gopher_quality.too_few_words"
    assert (
        verdict({"name": "gopher_quality", "max_words": 60}, "the and " + "garden " * 59)
        == "gopher_quality.too_many_words"
    )
    assert verdict("gopher_quality", "The, And. " + "garden " * 48) is None


def naive_repetition(words: list[str]) -> str | None:
    """Table A1's n-gram rules, spelt out."""
    total = sum(map(len, words))
    limits = {2: 0.20, 3: 0.18, 4: 0.16, 5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    for n, limit in limits.items():
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        repeated = {gram: grams.count(gram) for gram in set(grams) if grams.count(gram) > 1}
        if n <= 4:
            if (
                repeated
                and max(count * sum(map(len, gram)) for gram, count in repeated.items()) > limit * total
            ):
                return f"gopher_repetition.top_{n}_gram"
        else:
            covered = {i + k for i, gram in enumerate(grams) if gram in repeated for k in range(n)}
            if sum(len(words[i]) for i in covered) > limit * total:
                return f"gopher_repetition.duplicate_{n}_grams"
    return None


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "bb", "ccc", "dddd", "e" * 9, *(f"w{n}" for n in range(20))]), max_size=60)
)
def test_gopher_repetition_equals_its_definition(words: list[str]) -> None:
    assert verdict("gopher_repetition", " ".join(words)) == naive_repetition(words)


def test_gopher_repetition_of_lines_and_paragraphs() -> None:
    lines = [f"line number {n} of the text" for n in range(7)]
    assert (
        verdict({"name": "gopher_repetition", "ngrams": False}, "\n".join([*lines, *lines[:3]]))
        == "gopher_repetition.duplicate_line_chars"
    )
    assert (
        verdict({"name": "gopher_repetition", "ngrams": False}, "\n".join([*lines, *["x"] * 5]))
        == "gopher_repetition.duplicate_lines"
    )
    spaced = "\n\n".join(
        ["one\ntwo three", "four\nfive", "six\nseven", "eight\nnine", "ten", "one\ntwo three"]
    )
    assert verdict(
        {"name": "gopher_repetition", "ngrams": False, "max_duplicate_line_chars": 1.0}, spaced
    ) == ("gopher_repetition.duplicate_paragraph_chars")
    spaced = "\n\n".join(
        ["a long paragraph that stands alone " + "and goes on " * 20 + str(n) for n in range(3)]
        + ["x\ny"] * 3
    )
    assert verdict({"name": "gopher_repetition", "ngrams": False, "max_duplicate_lines": 0.9}, spaced) == (
        "gopher_repetition.duplicate_paragraphs"
    )
    assert verdict("gopher_repetition", PROSE) is None


def test_c4() -> None:
    page = "Menu\nThis line has enough words to stay.[1] \nPlease enable JavaScript to read this page.\nWe have a privacy policy on this page.\nA second sentence is here as well! And it has a third one."
    assert (
        text_after("c4", page)
        == "This line has enough words to stay.\nA second sentence is here as well! And it has a third one."
    )
    assert verdict("c4", "Lorem Ipsum dolor sit amet consectetur.") == "c4.lorem_ipsum"
    assert verdict("c4", "function() { return 1; }") == "c4.curly_bracket"
    assert verdict({"name": "c4", "curly_brackets": False}, "function() { return 1; }") == "c4.no_line_left"
    assert verdict("c4", "Only one sentence is on this page.") == "c4.too_few_sentences"
    assert verdict("c4", "This line trails off into nothing at all...") == "c4.no_line_left"
    assert verdict("c4", f"{'x' * 1001} is too long a word. It is. It is. It is.") == "c4.no_line_left"


def test_c4_bad_words(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("darn\nvery bad\n")
    spec = {"name": "c4", "bad_words_file": str(words)}
    assert verdict(spec, PROSE + " Darn!") == "c4.bad_word"
    assert verdict(spec, PROSE.replace("\n", " ") + " darning socks.") is None
    with pytest.raises(ConfigError, match="bad_words_file"):
        plan_filters([{"name": "c4", "bad_words_file": str(tmp_path / "none")}])


def test_language() -> None:
    pytest.importorskip("py3langid")
    german = "Der alte Mann ging jeden Morgen durch die Straßen der Stadt und kaufte sich eine Zeitung."
    assert verdict("language", PROSE) is None
    assert verdict("language", german) == "language"
    assert verdict({"language": ["en", "de"]}, german) is None
    assert verdict({"name": "language", "keep": "de"}, german) is None
    assert verdict({"name": "language", "keep": "de"}, PROSE) == "language"
    assert verdict("language", "") == "language"
    with pytest.raises(ConfigError, match="knows no language"):
        plan_filters([{"language": ["english"]}])


def test_language_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(ConfigError, match=r"pip install \'\.\[language\]\'"):
        plan_filters([{"name": "language", "keep": ["fr"], "min_probability": 0.123}])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("gopher_qualty", "Did you mean gopher_quality?"),
        ({"name": "gopher_quality", "min_wrods": 3}, "Did you mean min_words"),
        ({"name": "gopher_quality", "min_words": "three"}, "expected a whole number"),
        ({"name": "gopher_quality", "min_words": True}, "expected a whole number"),
        ({"name": "gopher_quality", "max_bullet_lines": "x"}, "expected a number"),
        ({"min_chars": None}, "expected a whole number"),
        ("min_chars", "chars is missing"),
        ({"regex": {"drop": "("}}, "regex"),
        ("regex", "one of drop, keep or remove"),
        ({"a": 1, "b": 2}, "has no `name`"),
        ({"nosuch": 1}, "no filter 'nosuch'"),
        ("no_such_module:f", "cannot be imported"),
        ("os:nothing", "cannot be imported"),
        ("os:sep", "expected a function"),
        ({"name": "x", "function": "os"}, "module:function"),
    ],
)
def test_a_wrong_entry_is_named(spec: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=r"clean\.filters") as caught:
        plan_filters([{"min_chars": 1}, spec])
    assert words in str(caught.value)


# A user's own function --------------------------------------------------------------------------------------


@pytest.fixture
def my_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "my_filters_for_tests.py"
    path.write_text(
        "def by_source(document):\n    return document['source'] != 'spam'\n"
        "def shout(document):\n    return document['text'].upper()\n"
        "def named(document):\n    return (False, 'too loud!') if document['text'].isupper() else True\n"
        "def fails(document):\n    return 1 / len(document['text']) > 0\n"
        "def forgets(document):\n    pass\n"
        "def surrogate(document):\n    return '\\ud800'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop("my_filters_for_tests", None)


def test_a_function_keeps_drops_and_changes(my_filters: Path) -> None:
    filters = plan_filters(
        ["my_filters_for_tests:by_source", "my_filters_for_tests:shout", "my_filters_for_tests:named"]
    )
    reasons, texts = filters.apply(batch(["a", "b"], ["spam", "web"]))
    assert reasons == ["by_source", "named.too_loud_"]
    assert texts == ["a", "B"]
    copy = pickle.loads(pickle.dumps(filters))
    assert copy.apply(batch(["a", "b"], ["spam", "web"])) == (reasons, texts)


def test_an_exception_is_a_counted_reason_up_to_a_limit(my_filters: Path) -> None:
    filters = plan_filters([{"name": "careful", "function": "my_filters_for_tests:fails", "max_errors": 2}])
    reasons, _ = filters.apply(batch(["x", "", "y", ""]))
    assert reasons == [None, "careful.error", None, "careful.error"]
    with pytest.raises(
        InputError, match=r"failed on 3 documents.*ZeroDivisionError.*my_filters_for_tests\.py line 8"
    ):
        filters.apply(batch(["", "", ""]))


def test_an_answer_that_means_nothing_is_an_error(my_filters: Path) -> None:
    assert verdict("my_filters_for_tests:forgets", "x") == "forgets.error"
    assert verdict("my_filters_for_tests:surrogate", "x") == "surrogate.error"


def test_a_changed_function_changes_the_fingerprint(my_filters: Path, tmp_path: Path) -> None:
    spec = ["my_filters_for_tests:shout"]
    before = plan_filters(spec).fingerprint
    assert plan_filters(spec).fingerprint == before
    assert plan_filters([]).fingerprint != before
    my_filters.write_text(my_filters.read_text() + "\n# changed\n")
    assert plan_filters(spec).fingerprint != before


def test_changed_code_is_run_in_the_same_process(my_filters: Path) -> None:
    spec = ["my_filters_for_tests:by_source"]
    assert plan_filters(spec).apply(batch(["x"], ["spam"]))[0] == ["by_source"]
    my_filters.write_text("def by_source(document):\n    return True\n")
    assert plan_filters(spec).apply(batch(["x"], ["spam"]))[0] == [None]


def test_two_folders_may_have_a_file_of_one_name(
    my_filters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = plan_filters(["my_filters_for_tests:shout"])
    other = tmp_path / "other"
    other.mkdir()
    (other / my_filters.name).write_text("def shout(document):\n    return document['text'] + '!'\n")
    monkeypatch.chdir(other)
    second = plan_filters(["my_filters_for_tests:shout"])
    assert first.fingerprint != second.fingerprint
    for filters, text in ((first, "A"), (second, "a!"), (first, "A")):
        assert filters.apply(batch(["a"]))[1] == [text]


def test_a_function_may_see_where_a_document_is_and_its_whole_record(my_filters: Path) -> None:
    my_filters.write_text(
        "def by_url(document):\n"
        "    assert (document['file'], document['offset']) == ('a.jsonl', 1)\n"
        "    return not document['metadata']['url'].endswith('/spam')\n"
    )
    spec = {"name": "by_url", "function": "my_filters_for_tests:by_url", "metadata": True}
    filters = plan_filters([{"min_chars": 1}, spec])
    assert filters.needs_metadata
    for url, reason in (("http://x/spam", "by_url"), ("http://x/good", None)):
        assert filters.apply(batch(["a"], records=[Record(url=url)]))[0] == [reason]
    unasked = plan_filters(["my_filters_for_tests:by_url"])
    assert not unasked.needs_metadata
    with pytest.raises(ConfigError, match="metadata: true"):
        unasked.apply(batch(["a"], records=[Record(url="u")]))
    with pytest.raises(ConfigError, match="not available"):
        filters.apply(batch(["a"]))


def elsewhere(pickled: bytes, folder: Path) -> subprocess.CompletedProcess[str]:
    """What unpickled filters say of one document in a fresh interpreter with another current folder."""
    code = (
        "import pickle, sys\n"
        "from btlm_data.cleaning.document import Documents\n"
        "filters = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "print(filters.apply(Documents(['darn b'], ['web'], ['f'], [1])))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, pickled.hex()]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_filters_are_complete_in_a_fresh_interpreter_in_another_folder(
    my_filters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "words.txt").write_text("darn\n")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_package" / "more.py").write_text("from . import __name__ as n\ndef f(d):\n    return n\n")
    other = tmp_path / "other"
    other.mkdir()
    # A file of the same name in the worker's folder must not be taken for the one that was planned with.
    (other / my_filters.name).write_text("def shout(document):\n    return False, 'wrong'\n")
    words = pickle.dumps(plan_filters([{"name": "c4", "bad_words_file": "words.txt"}]))
    shout = pickle.dumps(plan_filters(["my_filters_for_tests:shout"]))
    package = pickle.dumps(plan_filters(["my_package.more:f"]))
    (tmp_path / "words.txt").unlink()
    assert elsewhere(words, other).stdout == "(['c4.bad_word'], ['darn b'])\n"
    assert elsewhere(shout, other).stdout == "([None], ['DARN B'])\n"
    assert elsewhere(package, other).stdout == "([None], ['my_package'])\n"
    my_filters.write_text("def shout(document):\n    return True\n")
    assert "has changed since the run was planned" in elsewhere(shout, other).stderr
    my_filters.unlink()
    assert "is missing" in elsewhere(shout, other).stderr
    for name in ("my_package", "my_package.more"):
        monkeypatch.delitem(sys.modules, name)


def test_the_word_list_decides_and_its_path_does_not(tmp_path: Path) -> None:
    for name, words in (("a", "darn\n"), ("b", "darn\n"), ("c", "other\n")):
        (tmp_path / name).write_text(words)
    a, b, c = (plan_filters([{"name": "c4", "bad_words_file": str(tmp_path / n)}]).fingerprint for n in "abc")
    assert a == b != c


def test_the_modules_of_a_recipe_are_named_without_importing_them(my_filters: Path) -> None:
    my_filters.write_text("raise SystemExit('imported')\n")
    named = {"name": "x", "function": "package.module:f"}
    forms: list[Any] = [
        "my_filters_for_tests:f",
        {"min_chars": 3},
        named,
        {"a:f": {"max_errors": 3}},
        {"name": "b:f"},
    ]
    assert modules_named(forms) == ["a", "b", "my_filters_for_tests", "package.module"]
    assert modules_named(["gopher_quality"]) == []
