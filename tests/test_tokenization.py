import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, dynamic_module_utils

from modeling_lle.configuration import LLEConfig
from modeling_lle.tokenization import LLETokenizer

TEXTS = ["def area(r):\n    return 3.14 * r ** 2\n", "Größe, naïve; the user's cat sat on the mat.\n"] * 4


BPE = LLETokenizer.train(TEXTS, vocab_size=300)
WORDS = LLETokenizer.train(["the cat sat on the mat\nthe <unk> ran\n"], kind="word")


@settings(deadline=None, max_examples=300)
@given(
    st.text()
    | st.text(alphabet=" \t\n\r\x00\x85\u2028a1_'")
    | st.sampled_from(["<eos>", " <pad> \n", "e\u0301\ufeff"])
)
def test_bpe_round_trip_of_any_text(text: str) -> None:
    for as_text in (False, True):
        ids = BPE.encode(text, split_special_tokens=as_text)
        assert BPE.decode(ids) == text
    assert all(index < len(BPE) for index in ids)


def test_bpe_splits_digits_and_keeps_indentation() -> None:
    pieces = BPE.backend_tokenizer.pre_tokenizer.pre_tokenize_str("if x:\n        return snake_case + 123\n")
    assert [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in pieces] == [
        *["if", " x", ":\n", "       ", " return", " snake", "_case", " +", " ", "1", "2", "3", "\n"]
    ]


def test_special_tokens() -> None:
    for tokenizer in (BPE, WORDS):
        assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
        assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert BPE.unk_token is None
    assert WORDS.unk_token_id == 2


def test_batches_are_padded_on_the_left() -> None:
    batch = BPE(["a", "the cat"], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"][0][0] == BPE.pad_token_id
    assert batch["attention_mask"][0][-1] == 1


def test_training_is_deterministic_and_bounded() -> None:
    assert LLETokenizer.train(TEXTS, 300).get_vocab() == BPE.get_vocab()
    assert len(BPE) == 300
    assert len(LLETokenizer.train(["ab"], vocab_size=1000)) == 258  # nothing there to merge


def test_lowercase_reads_a_word_alike_wherever_it_stands(tmp_path: Path) -> None:
    tokenizer = LLETokenizer.train(["The user's cat", "a cat"] * 4, vocab_size=300, lowercase=True)
    tokenizer.save_pretrained(tmp_path)
    for read in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert read.encode("CAT The") == read.encode("cat the")
        assert read.encode("Cat") == read.encode("a cat")[1:]
        assert read.encode("") == []
    words = LLETokenizer.train(["The cat\n"], kind="word", lowercase=True)
    assert words.tokenize("the CAT\n") == ["the", "cat", "<eos>"]


def test_words() -> None:
    assert WORDS.tokenize("the dog sat\n\n") == ["the", "<unk>", "sat", "<eos>", "<eos>"]
    assert WORDS.decode(WORDS.encode("the  cat\nsat <unk> on\n")) == "the cat\nsat <unk> on\n"
    assert len(WORDS) == 3 + len({"the", "cat", "sat", "on", "mat", "ran"})


def test_word_vocabulary_keeps_the_most_frequent() -> None:
    tokenizer = LLETokenizer.train(["b b c c c a"], vocab_size=5, kind="word")
    assert set(tokenizer.get_vocab()) == {"<eos>", "<pad>", "<unk>", "c", "b"}


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_saved_tokenizer_is_found_by_auto_tokenizer(tmp_path, kind: str) -> None:
    tokenizer = LLETokenizer.train(TEXTS, vocab_size=300, kind=kind)
    LLEConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    AutoTokenizer.register(LLEConfig, tokenizer_class=LLETokenizer, exist_ok=True)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), LLETokenizer.from_pretrained(tmp_path)):
        assert type(loaded) is LLETokenizer
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.padding_side == "left"
        assert loaded.model_input_names == ["input_ids", "attention_mask"]
        text = "def area(r):\n    return the unseen\n"
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == tokenizer.decode(tokenizer.encode(text))


def test_remote_code_copy(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LLETokenizer, "_auto_class", None)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    LLETokenizer.register_for_auto_class("AutoTokenizer")
    BPE.save_pretrained(tmp_path / "repo")
    saved = json.loads((tmp_path / "repo" / "tokenizer_config.json").read_text())
    assert saved["auto_map"] == {"AutoTokenizer": ["tokenization.LLETokenizer", None]}
    copy = dynamic_module_utils.get_class_from_dynamic_module("tokenization.LLETokenizer", tmp_path / "repo")
    assert copy is not LLETokenizer
    assert copy.from_pretrained(tmp_path / "repo").encode(TEXTS[0]) == BPE.encode(TEXTS[0])


@pytest.mark.parametrize("kind", ["bpe", "word"])
@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_empty_texts(kind: str, texts: list[str]) -> None:
    with pytest.raises(ValueError, match="the texts are empty"):
        LLETokenizer.train(texts, vocab_size=300, kind=kind)


@pytest.mark.parametrize("vocab_size", [None, 257])
def test_bpe_vocabulary_below_the_bytes(vocab_size: int | None) -> None:
    with pytest.raises(ValueError, match=f"at least 258 .* got {vocab_size}"):
        LLETokenizer.train(TEXTS, vocab_size=vocab_size)


def test_word_vocabulary_without_room_or_words() -> None:
    with pytest.raises(ValueError, match="more than its 3 special tokens, got 3"):
        LLETokenizer.train(TEXTS, vocab_size=3, kind="word")
    with pytest.raises(ValueError, match="hold no words"):
        LLETokenizer.train([" \n"], kind="word")


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="'bpe' or 'word', got 'char'"):
        LLETokenizer.train(TEXTS, vocab_size=300, kind="char")  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "size"), [("bpe", 300), ("word", None)])
def test_texts_end_where_it_is_asked_for(kind: Any, size: int | None, tmp_path: Path) -> None:
    tokenizer = LLETokenizer.train(["the cat sat"] * 3, size, kind, ends_texts=True)
    tokenizer.save_pretrained(tmp_path)
    for found in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = found("the cat")["input_ids"]
        assert ids[-1] == found.eos_token_id
        assert ids[:-1] == found("the cat", add_special_tokens=False)["input_ids"]
        assert found.decode(ids, skip_special_tokens=True) == "the cat"
        padded = found(["the", "the cat sat"], padding=True)
        assert padded["attention_mask"][0][-1] == 0
        assert found("the", "cat")["input_ids"].count(found.eos_token_id) == 2


PIECES = ["%(total)s", "{name}", "<b>", "</b>", "%1$s", "%d", "&amp;", "%{n}", "${x}", "{{ a b }}", "%n"]


def test_placeholders_are_pieces_of_their_own() -> None:
    texts = [f"Save {piece}the file{piece}now" for piece in PIECES]
    texts.append("_File and Sa&ve, my_file")
    tokenizer = LLETokenizer.train(texts, 400, ends_texts=True, placeholders=True)

    def split(text: str) -> list[str]:
        found = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        return [piece.replace("\u0120", " ") for piece, _ in found]

    for piece, text in zip(PIECES, texts, strict=False):
        assert split(text) == ["Save", f" {piece}", "the", " file", piece, "now"]
    assert split(texts[-1]) == ["_", "File", " and", " Sa", "&", "ve", ",", " my", "_", "file"]
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    with pytest.raises(ValueError, match="placeholders=True needs kind='bpe'"):
        LLETokenizer.train(texts, kind="word", placeholders=True)
