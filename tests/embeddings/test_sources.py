"""Static embeddings of each source, with the tokenizer whose ids are their rows."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from modeling_lle.embeddings.sources import load_embeddings
from tests.factories.embeddings import TEXTS, make_bpe, make_model2vec, make_wordllama, make_wordpiece


def embedded(embeddings: Any, text: str) -> torch.Tensor:
    return embeddings.matrix[embeddings.tokenizer(text)["input_ids"]]


@pytest.fixture
def wordllama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wordllama", raising=False)
    return make_wordllama(tmp_path)


def test_those_of_wordllama_are_read_without_importing_it(wordllama: torch.Tensor) -> None:
    found, text = load_embeddings("wordllama"), TEXTS[0]
    ids = make_bpe().encode(text, add_special_tokens=False).ids
    torch.testing.assert_close(embedded(found, text), wordllama[ids].float())
    assert found.tokenizer.pad_token_id == len(wordllama)  # it had none
    assert not found.matrix[-1].any()


def test_a_missing_or_another_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install modeling_lle\[embeddings\]"):
        load_embeddings("wordllama")
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wordllama", raising=False)
    (tmp_path / "wordllama").mkdir()
    (tmp_path / "wordllama" / "__init__.py").touch()
    with pytest.raises(ImportError, match=r"the installed wordllama has no weights"):
        load_embeddings("wordllama")


def test_those_of_model2vec_are_read_also_from_a_quantised_vocabulary(tmp_path: Path) -> None:
    matrix, ids = make_model2vec(tmp_path / "plain"), make_wordpiece().encode(TEXTS[1]).ids
    found = load_embeddings(tmp_path / "plain")
    torch.testing.assert_close(embedded(found, TEXTS[1]), matrix[ids])
    assert found.tokenizer.pad_token == "[PAD]"
    assert found.matrix.shape == matrix.shape
    mapping, weights = torch.arange(len(matrix)).flip(0), torch.rand(len(matrix))
    make_model2vec(tmp_path / "quantised", mapping=mapping, weights=weights)
    found = load_embeddings(tmp_path / "quantised")
    torch.testing.assert_close(embedded(found, TEXTS[1]), matrix[mapping[ids]] * weights[ids][:, None])


def test_those_of_a_model_of_transformers_are_its_input_embeddings(tmp_path: Path) -> None:
    backend = make_wordpiece()
    sizes: Any = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertModel(BertConfig(vocab_size=backend.get_vocab_size() + 3, **sizes))
    model.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]").save_pretrained(tmp_path)
    found = load_embeddings(tmp_path)
    ids = backend.encode(TEXTS[1]).ids
    torch.testing.assert_close(embedded(found, TEXTS[1]), model.get_input_embeddings().weight[ids].detach())
    assert len(found.matrix) == backend.get_vocab_size()


def test_capital_letters_and_rare_types_can_be_left_out(wordllama: torch.Tensor, tmp_path: Path) -> None:
    found = load_embeddings("wordllama", lowercase=True, texts=TEXTS[:2])
    assert len(found.matrix) < len(wordllama)
    torch.testing.assert_close(embedded(found, "The CAT"), embedded(load_embeddings("wordllama"), "the cat"))
    found.tokenizer.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded("The CAT")["input_ids"] == found.tokenizer("the cat")["input_ids"]


def test_a_name_without_embeddings_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no embeddings at .*: give 'wordllama', or the folder"):
        load_embeddings(tmp_path)
