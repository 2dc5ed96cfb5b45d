"""Search by words: it finds what plain BM25 finds, in an order that is always the same; fuzzy match scores."""

import logging
import math
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("bm25s")
pytest.importorskip("rapidfuzz")
from modeling_lle.bank.lexical import SentenceIndex, fuzzy_match

SENTENCES = ["A dog runs.", "a cat sleeps", "Two dogs run", "the dog sleeps in 2024", "A dog runs.", ""]
FEW_WORDS = st.lists(st.sampled_from(["a", "B", "b", "ü", "7", ",", "%", "猫"]), max_size=6).map(" ".join)


def reference(sentences: list[str], query: str) -> list[float]:
    """BM25 as Lucene has it, k1 = 1.5 and b = 0.75, word by word."""
    documents = [Counter(re.findall(r"[\w]+|[^\w\s]", sentence.lower())) for sentence in sentences]
    mean = sum(document.total() for document in documents) / len(documents)
    scores = [0.0] * len(documents)
    for word in re.findall(r"[\w]+|[^\w\s]", query.lower()):
        having = sum(word in document for document in documents)
        weight = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
        for place, document in enumerate(documents):
            if word in document:
                norm = 1.5 * (1 - 0.75 + 0.75 * document.total() / mean)
                scores[place] += weight * document[word] / (document[word] + norm)
    return scores


def test_shapes_and_order() -> None:
    places, scores = SentenceIndex(SENTENCES).search(["a dog runs", "asleep", "2024", "", "CAT"], 3)
    assert (places.shape, places.dtype, scores.shape, scores.dtype) == ((5, 3), np.int64, (5, 3), np.float32)
    assert places.tolist() == [[0, 4, 1], [-1, -1, -1], [3, -1, -1], [-1, -1, -1], [1, -1, -1]]
    assert scores[0, 0] == scores[0, 1] > scores[0, 2] > 0
    assert not scores[places == -1].any()


@given(sentences=st.lists(FEW_WORDS, min_size=1, max_size=12), query=FEW_WORDS, number=st.integers(1, 15))
@settings(deadline=None)
def test_finds_what_plain_bm25_finds(sentences: list[str], query: str, number: int) -> None:
    (places,), (scores,) = SentenceIndex(sentences).search([query], number)
    expected = reference(sentences, query) if any(sentences) else [0.0] * len(sentences)
    count = min(number, sum(score > 0 for score in expected))
    found = places[:count].tolist()
    assert (places[count:] == -1).all()
    np.testing.assert_allclose(scores[:count], [expected[place] for place in found], rtol=1e-5)
    np.testing.assert_allclose(scores[:count], sorted(expected, reverse=True)[:count], rtol=1e-5)
    for first, second in zip(range(count), range(1, count), strict=False):
        assert (-scores[first], found[first]) < (-scores[second], found[second])


def test_of_equally_near_sentences_the_earlier_ones_are_found() -> None:
    index = SentenceIndex(["x y", "y x", "z"] * 50)
    assert index.search(["x"], 4)[0].tolist() == [[0, 1, 3, 4]]
    assert index.search(["y x"], 150)[0][0, :100].tolist() == [place for place in range(150) if place % 3 < 2]


def test_chinese_and_signs() -> None:
    index = SentenceIndex(["我喜欢猫", "他有一只狗。", "ネコが好き", "100 %", "{name}"])
    assert index.search(["猫", "一只狗", "ネコ", "5%", "{x}"], 1)[0].tolist() == [[0], [1], [2], [3], [4]]


def test_nothing_to_find() -> None:
    for sentences in ([], ["", " "]):
        assert SentenceIndex(sentences).search(["a", ""], 2)[0].tolist() == [[-1, -1], [-1, -1]]
    assert SentenceIndex(["a"]).search([], 2)[0].shape == (0, 2)
    with pytest.raises(ValueError, match="cannot find 0 sentences: ask for at least one"):
        SentenceIndex(["a"]).search(["a"], 0)


def test_it_is_silent(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        SentenceIndex(SENTENCES).search(["a dog", ""], 2)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("", "", 1.0),
        ("a b", "a b", 1.0),
        ("a b c d", "a b c", 0.75),
        ("a, b", "a b", 2 / 3),
        ("Where is my card?", "Where is my new card?", 5 / 6),
        ("a b", "A b", 0.5),
        ("a b", "a  b", 0.99),
        ("a b", "c d", 0.0),
        ("a", "", 0.0),
        ("我喜欢猫", "我喜欢狗", 0.75),
        ("x " * 300, "x " * 299 + "y ", 0.99),
    ],
)
def test_fuzzy_match(a: str, b: str, expected: float) -> None:
    assert fuzzy_match(a, b) == pytest.approx(expected)
    assert fuzzy_match(b, a) == fuzzy_match(a, b)


@given(a=st.text(max_size=12), b=st.text(max_size=12))
def test_only_equal_texts_match_fully(a: str, b: str) -> None:
    assert 0 <= fuzzy_match(a, b) <= 1
    assert (fuzzy_match(a, b) == 1) == (a == b)


@pytest.mark.parametrize("missing", ["bm25s", "rapidfuzz.distance"])
def test_without_the_libraries(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import modeling_lle.bank.lexical"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'needs bm25s and rapidfuzz: pip install "modeling_lle[translation]"' in ran.stderr


def test_the_package_does_not_import_the_libraries() -> None:
    code = "import sys, modeling_lle, modeling_lle.data; print({'bm25s', 'rapidfuzz', 'polib'} & {*sys.modules})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
