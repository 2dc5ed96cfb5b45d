"""Sketches of texts."""

import numpy as np
import pytest

from modeling_lle.data.seen import RUN, Sketch, run_hashes, text_hashes

NONE = np.zeros(0, dtype=np.int64)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(2, 5000, 20_000)


def test_half_of_a_text_is_found_to_be_half(tokens):
    other = np.random.default_rng(1).integers(2, 5000, 10_000)
    sketch = Sketch.of(run_hashes(tokens, NONE))
    assert sketch.share(run_hashes(np.concatenate([tokens[:10_000], other]), NONE)) == pytest.approx(0.5, abs=0.01)
    assert sketch.share(run_hashes(other, NONE)) == 0


def test_a_sketch_of_a_few_hashes_estimates_the_same_share(tokens):
    other = np.random.default_rng(1).integers(2, 5000, 10_000)
    mixed = run_hashes(np.concatenate([tokens[:10_000], other]), NONE)
    sketch = Sketch.of(run_hashes(tokens, NONE, kept=2001), kept=2000)
    assert not sketch.complete
    assert len(sketch.hashes) == 2000
    assert sketch.share(mixed) == pytest.approx(0.5, abs=0.06)


def test_blank_tokens_between_words_do_not_matter(tokens):
    spaced = np.insert(tokens, np.arange(0, len(tokens), 7), 1)
    np.testing.assert_array_equal(run_hashes(spaced, np.array([1])), run_hashes(tokens, NONE))


def test_every_run_is_hashed_across_the_parts(tokens, monkeypatch):
    whole = run_hashes(tokens, NONE)
    monkeypatch.setattr("modeling_lle.data.seen._PART", 1000)
    np.testing.assert_array_equal(run_hashes(tokens, NONE), whole)
    assert len(whole) == len(tokens) - RUN + 1


def test_a_text_shorter_than_a_run_has_no_hash(tokens):
    assert not len(run_hashes(tokens[: RUN - 1], NONE))
    assert Sketch.of(run_hashes(tokens, NONE)).share(run_hashes(tokens[: RUN - 1], NONE)) == 0


def test_texts_are_compared_without_case_and_white_space():
    sketch = Sketch.of(text_hashes(["Where is my card?", "Hello"]))
    assert sketch.share(text_hashes(["where is  my CARD?\n", "Where are my cards?"])) == 0.5


def test_a_sketch_is_read_as_it_was_written(tmp_path, tokens):
    sketch = Sketch.of(run_hashes(tokens, NONE), kept=100)
    sketch.save(tmp_path / "seen.safetensors")
    read = Sketch.load(tmp_path / "seen.safetensors")
    np.testing.assert_array_equal(read.hashes, sketch.hashes)
    assert not read.complete


@pytest.mark.parametrize("content", [b"", b"12345678", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_damaged_sketch_is_named(tmp_path, content):
    path = tmp_path / "seen.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"seen\.safetensors.*remove it"):
        Sketch.load(path)
