"""What forward does with arguments that it does not know, and with documents that lie side by side in a row."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DataCollatorWithFlattening, DynamicCache

from modeling_lle import LLECache
from modeling_lle.models.arguments import Packing
from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.pairs import make_capitals_tokenizer
from tests.factories.texts import make_ids
from tests.factories.translators import make_translator

LENGTHS = (5, 1, 7, 3)
TRAINING = {"training": {"window": 7, "other_rows": False}}
DOCUMENTS = [make_ids(1, length, seed) for seed, length in enumerate(LENGTHS)]


def close(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def packed(*without: str, **options: Any) -> dict[str, Any]:
    """The documents in one row, as transformers packs them, without some of what it says of them."""
    collate = DataCollatorWithFlattening(return_seq_idx=True, return_flash_attn_kwargs=True, **options)
    batch = collate([{"input_ids": document[0].tolist()} for document in DOCUMENTS])
    return {name: value for name, value in batch.items() if name not in without}


HINTS = {
    "position_ids": ("seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
    "seq_idx": ("position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
    "cu_seq_lens": ("position_ids", "seq_idx"),
    "all": (),
}


@pytest.mark.parametrize("hint", HINTS)
@pytest.mark.parametrize("how", ["plain", "stream", "learned"])
def test_packed_documents_are_read_as_if_they_were_alone(hint: str, how: str) -> None:
    model = make_language_model(history=TRAINING).train(how == "learned")
    given = {"use_history": how != "plain"}
    with torch.no_grad():
        alone = [model(document, labels=document, num_items_in_batch=1, **given) for document in DOCUMENTS]
        together = model(**packed(*HINTS[hint]), **given)
        unmasked = model(**{**packed(*HINTS[hint]), "labels": torch.cat(DOCUMENTS, 1)}, **given)
    targets = sum(length - 1 for length in LENGTHS)
    close(together.loss, sum(output.loss for output in alone) / targets)
    close(unmasked.loss, together.loss)
    if how != "learned":
        close(together.logits, torch.cat([output.logits for output in alone], 1))
    assert "past_key_values" not in together


def test_what_belongs_to_positions_comes_back_in_their_order() -> None:
    model, batch = make_language_model(), packed()
    own = {"output_hidden_states": True, "output_history": True}
    with torch.no_grad():
        output = model(**batch, **own)
        alone = [model(document, **own) for document in DOCUMENTS]
        kept = model(**batch, logits_to_keep=3).logits
        embedded = model(**{**batch, "input_ids": None}, inputs_embeds=model.model.embed_tokens(batch["input_ids"]))
    for layer, states in enumerate(output.hidden_states):
        close(states, torch.cat([one.hidden_states[layer] for one in alone], 1))
    close(output.history.base_share, torch.cat([one.history.base_share for one in alone], 1))
    close(kept, output.logits[:, -3:])
    assert embedded.logits.shape == output.logits.shape


def test_rows_with_padding_hold_packed_documents_too() -> None:
    model = make_language_model()
    row = torch.cat([DOCUMENTS[0], make_ids(1, 2, 9), DOCUMENTS[2]], 1)
    other = torch.cat([make_ids(1, 4, 8), DOCUMENTS[3], DOCUMENTS[2]], 1)
    ids = torch.cat([row, other])
    mask = torch.ones_like(ids)
    mask[0, 5:7], mask[1, :4] = 0, 0
    places = torch.cat([torch.arange(n) for n in (5, 2, 7, 4, 3, 7)]).view(2, 14)
    targets = torch.cat([row[:, 1:], other[:, 1:]])
    with torch.no_grad():
        output = model(ids, mask, labels=ids, position_ids=places)
        alone = [DOCUMENTS[index] for index in (0, 2, 3, 2)]
        nats = sum(model(document, labels=document, num_items_in_batch=1).loss for document in alone)
        shifted = model(ids, mask, shift_labels=torch.cat([targets, make_ids(2, 1)], 1), position_ids=places)
        twice, end = torch.cat([DOCUMENTS[2]] * 2), make_ids(2, 1)
        last = model.score(twice, torch.cat([twice[:, 1:], end], 1)).log_probs[:, -1].sum()
    close(output.loss, nats / (4 + 6 + 2 + 6))
    close(shifted.loss, (nats - last) / (4 + 6 + 2 + 6 + 2))


def test_the_gradient_of_packed_documents_is_that_of_a_padded_batch() -> None:
    model = make_language_model(0, hidden_dropout=0.0, activation_penalty=0.5).train()
    batch = packed("seq_idx")
    got = torch.autograd.grad(model(**batch, num_items_in_batch=12).loss, list(model.parameters()))
    ids, mask = torch.zeros(4, 7, dtype=torch.long), torch.zeros(4, 7, dtype=torch.long)
    for row, document in enumerate(DOCUMENTS):
        ids[row, : document.shape[1]], mask[row, : document.shape[1]] = document[0], 1
    labels = ids.masked_fill(mask == 0, -100)
    want = torch.autograd.grad(model(ids, mask, labels=labels, num_items_in_batch=12).loss, list(model.parameters()))
    close(got, want)


@pytest.mark.parametrize("start", [0, 5])
def test_ordinary_positions_change_nothing(start: int) -> None:
    model, ids = make_language_model(), make_ids(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        want, padded = model(ids, labels=ids), model(ids, mask).logits
        for places in (torch.arange(6)[None] + start, (torch.arange(6) + start).expand(2, 6)):
            given = model(ids, labels=ids, position_ids=places, cache_position=torch.arange(6), token_type_ids=ids * 0)
            close((given.loss, given.logits), (want.loss, want.logits))
        assert torch.equal(model(ids, mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits, padded)
        greedy = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        given = {"attention_mask": mask, "position_ids": positions, "pad_token_id": 0}
        assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False, **given), greedy)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "cache": ({"past_key_values": LLECache()}, "past_key_values"),
    "use_cache": ({"use_cache": True}, "use_cache"),
    "other borders": ({"cu_seq_lens_q": torch.tensor([0, 2, 16])}, "do not begin their documents at the same"),
    "borders that do not end": ({"cu_seq_lens_q": torch.tensor([0, 2])}, "from 0 to the 16 tokens"),
    "borders that fall": ({"cu_seq_lens_q": torch.tensor([0, 5, 2, 16])}, "grow from 0"),
    "gap": ({"position_ids": torch.tensor([[*range(8), *range(9, 17)]]), "seq_idx": None}, "neither go on by one"),
    "other shape": ({"seq_idx": torch.zeros(1, 3)}, r"seq_idx are \(1, 3\) for a batch of \(1, 16\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_contradicts_packed_documents_is_refused(case: str) -> None:
    options, message = REFUSED[case]
    batch = packed("cu_seq_lens_q", "cu_seq_lens_k") if "cu_seq_lens_q" in options else packed(*HINTS["position_ids"])
    with pytest.raises(ValueError, match=message):
        make_language_model()(**{**batch, **options})
    assert Packing.take({"cu_seq_lens_q": torch.tensor([0, 16])}, 1, 16, None) is None
    with pytest.raises(ValueError, match="single row; the batch has 2 rows"):
        Packing.take({"cu_seq_lens_q": torch.tensor([0, 3, 16])}, 2, 16, None)


def heads() -> list[tuple[Any, dict[str, Tensor]]]:
    ids = make_ids(1, 4)
    return [
        (make_language_model(), {"input_ids": ids}),
        (make_language_model().model, {"input_ids": ids}),
        (make_classifier(), {"input_ids": ids}),
        (make_classifier(of_tokens=True), {"input_ids": ids}),
        (make_translator(make_capitals_tokenizer()), {"input_ids": ids, "labels": ids}),
    ]


@pytest.mark.parametrize("head", range(5))
def test_no_argument_is_swallowed(head: int) -> None:
    model, given = heads()[head]
    kind = type(model).__name__
    with pytest.raises(TypeError, match=rf"{kind}.forward.*'atention_mask': did you mean 'attention_mask'"):
        model(**given, atention_mask=torch.ones(1, 4))
    with pytest.raises(TypeError, match=rf"{kind}.forward.*'zzz': it knows input_ids, attention_mask"):
        model(**given, zzz=1)
    with pytest.raises(ValueError, match="no token types"):
        model(**given, token_type_ids=torch.ones(1, 4))
    with pytest.raises(ValueError, match="packed documents"):
        model(**given, position_ids=torch.tensor([[0, 1, 0, 1]]), **({} if head else {"use_cache": True}))
    if head < 4:
        with pytest.raises(ValueError, match=f"{kind} cannot do output_attentions=True"):
            model(**given, output_attentions=True)
    want = model(**given)
    ignored = {"zzz": None, "output_attentions": None, "position_ids": None, "token_type_ids": torch.zeros(1, 4)}
    got = model(**given, **{name: value for name, value in ignored.items() if head < 4 or "attentions" not in name})
    assert list(got) == list(want)


def test_generation_says_that_there_are_no_attentions() -> None:
    model, ids = make_language_model(), make_ids(1, 3)
    with pytest.raises(ValueError, match="cannot do output_attentions=True"):
        model.generate(ids, max_new_tokens=2, output_attentions=True, return_dict_in_generate=True)
    output = model.generate(ids, max_new_tokens=2, output_hidden_states=True, return_dict_in_generate=True)
    assert len(output.hidden_states) == 2


@pytest.mark.parametrize("cache", [DynamicCache(), ((torch.zeros(1), torch.zeros(1)),)], ids=["dynamic", "tuple"])
@pytest.mark.parametrize("head", [0, 1, 4])
def test_a_cache_of_another_kind_is_refused(head: int, cache: Any) -> None:
    model, given = heads()[head]
    with pytest.raises(TypeError, match=f"past_key_values is a {type(cache).__name__}.*LLECache"):
        model(**given, past_key_values=cache)
    if head != 1:
        with pytest.raises((TypeError, ValueError), match="Cache"):
            model.generate(given["input_ids"], past_key_values=cache, max_new_tokens=2)
    if head == 0:
        with pytest.raises(TypeError, match="LLECache"):
            model.score(given["input_ids"], given["input_ids"], past_key_values=cache)
