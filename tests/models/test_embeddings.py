"""Classifiers with embeddings of another width than their states, or that begin with pretrained ones."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from modeling_lle import LLEConfig, LLEForCausalLM, LLEForSequenceClassification, LLEForTokenClassification
from tests.factories.classifiers import make_classifier
from tests.factories.embeddings import TEXTS, WIDTH, make_model2vec
from tests.factories.texts import make_ids

WIDE = {"stack": "plain", "embedding_size": 10, "num_hidden_layers": 2}
NAMES = {0: "yes", 1: "no"}


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("pooling", [["embeddings", "max"], ["embeddings"], ["last"]], ids="+".join)
def test_a_padded_batch_with_wide_embeddings_gives_what_its_texts_give_alone(pooling: list[str], members: int) -> None:
    model = make_classifier(**WIDE, classifier={"pooling": pooling, "members": members})
    ids, mask = make_ids(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[0, :2] = mask[1, 4:] = 0
    together = model.encode(ids, mask)
    assert together.shape == (2, model.key_size)
    for row in range(2):
        torch.testing.assert_close(together[row : row + 1], model.encode(ids[row, mask[row].bool()][None]))


def test_the_embeddings_of_a_text_stand_beside_its_states() -> None:
    model = make_classifier(**WIDE, classifier={"pooling": ["max", "embeddings"]})
    ids = make_ids(1, 6)
    key = model.encode(ids)[0]
    due = torch.nn.functional.normalize(model.model.embed_tokens(ids)[0].mean(0), dim=0)
    torch.testing.assert_close(torch.nn.functional.normalize(key[-10:], dim=0), due)
    asked = model(ids, output_hidden_states=True).hidden_states
    assert [states.shape[-1] for states in asked] == [10, 12, 12]
    assert model(ids).hidden_states is None


@pytest.mark.parametrize("projection", [0, 4])
def test_members_with_embeddings_beside_them_are_trained_apart(projection: int) -> None:
    own = {"pooling": ["max", "embeddings"], "members": 2, "projection": projection}
    model = make_classifier(**WIDE, classifier=own).train()
    assert model.key_size == (8 if projection else 2 * (12 + 10))
    output = model(make_ids(2, 6))
    torch.testing.assert_close(output.member_logits.mean(0), output.logits)
    output.member_logits[1].sum().backward()
    gradient = model.model.embed_tokens.weight.grad
    assert not gradient[:, :10].any()
    assert gradient[:, 10:].any()


@pytest.mark.parametrize("members", [1, 2])
def test_what_each_member_projects_has_the_root_mean_square_1(members: int) -> None:
    model = make_classifier(**WIDE, classifier={"pooling": ["max"], "members": members, "projection": 4})
    pooled = model.pooled(make_ids(3, 6)).unflatten(-1, (members, 4))
    torch.testing.assert_close(pooled.square().mean(-1), torch.ones(3, members))


def test_where_embeddings_of_another_width_cannot_be_is_told() -> None:
    with pytest.raises(ValueError, match=r"embedding_size is 10 and hidden_size 6; make them equal, or choose stack="):
        make_classifier(embedding_size=10)
    with pytest.raises(ValueError, match=r"LLEForCausalLM reads embeddings as wide as its states"):
        LLEForCausalLM(LLEConfig(vocab_size=9, hidden_size=6, embedding_size=10, stack="plain"))


def test_a_classifier_that_begins_with_embeddings_is_saved_with_their_tokenizer(tmp_path: Path) -> None:
    matrix = make_model2vec(tmp_path / "static")
    model = LLEForSequenceClassification.from_embeddings(tmp_path / "static", id2label=NAMES, hidden_size=4)
    torch.testing.assert_close(model.get_input_embeddings().weight.detach(), matrix)
    assert model.key_size == 2 * 4 + WIDTH
    model.learn(TEXTS, ["yes", "no", "no", "yes"], model.backbone_tokenizer)
    model.save_pretrained(tmp_path / "saved", save_history=True)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    given = tokenizer(TEXTS, return_tensors="pt", padding=True)
    torch.testing.assert_close(loaded(**given).logits, model(**given, use_history=False).logits)


def test_members_and_classifiers_of_tokens_begin_with_embeddings_too(tmp_path: Path) -> None:
    matrix = make_model2vec(tmp_path / "static")
    model = LLEForTokenClassification.from_embeddings(
        tmp_path / "static", texts=TEXTS[:1], hidden_size=4, classifier={"members": 2}
    )
    weight = model.get_input_embeddings().weight.detach()
    assert len(weight) < len(matrix)
    torch.testing.assert_close(weight[:, :WIDTH], weight[:, WIDTH:])
    with pytest.raises(ValueError, match=r"embedding_size is 9, but that of the embeddings is 6: leave it out"):
        LLEForTokenClassification.from_embeddings(tmp_path / "static", embedding_size=9)
