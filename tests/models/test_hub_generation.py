"""What transformers' own generation tests ask of a model, of one around a model of transformers: the same output.

Padded texts with history, alone and by beams, are in test_hub_models.py.
"""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput

from modeling_lle import LLECache, LLEForCausalLM
from tests.factories.hub_models import make_hub_model
from tests.factories.texts import make_ids

IDS = make_ids(2, 7).clamp(min=2)  # without padding
NEW = 5
MASK = torch.tensor([[1] * 7, [0] * 3 + [1] * 4])
SAMPLED = {"do_sample": True, "temperature": 1.5, "top_k": 9, "top_p": 0.9, "repetition_penalty": 1.3}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "samples": {**SAMPLED, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
}


class Pair(NamedTuple):
    """A model of transformers, and LLE around the same one."""

    hub: PreTrainedModel
    wrapped: LLEForCausalLM


@pytest.fixture(scope="module", params=["mamba2", "lfm2", "granitemoehybrid"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder, model = tmp_path_factory.mktemp("hub"), make_hub_model(request.param)
    model.save_pretrained(folder)
    return Pair(model, LLEForCausalLM.from_backbone(folder, history={"stream": {"window": 9}}).eval())


def generate(model: Any, ids: Tensor | None = IDS, **options: Any) -> Any:
    defaults = {"max_new_tokens": NEW, "eos_token_id": -1, "pad_token_id": 1, "do_sample": False}
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    torch.manual_seed(0)
    return model.generate(ids, **{**defaults, **asked, **options})


def close(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_the_output_of_generate_is_that_of_the_wrapped_model(pair: Pair, mode: str) -> None:
    options = {**MODES[mode], "attention_mask": MASK, "output_hidden_states": True}
    got, want = generate(pair.wrapped, use_history=False, **options), generate(pair.hub, **options)
    beams = options.get("num_beams", 1)
    assert type(got) is type(want) is (GenerateBeamDecoderOnlyOutput if beams > 1 else GenerateDecoderOnlyOutput)
    assert torch.equal(got.sequences, want.sequences)
    assert len(got.scores) == len(got.logits) == len(got.hidden_states) == NEW
    close((got.scores, got.logits), (want.scores, want.logits))
    assert isinstance(got.past_key_values, LLECache)
    if beams > 1:
        close(got.sequences_scores, want.sequences_scores)
        assert torch.equal(got.beam_indices, want.beam_indices)
        again = pair.wrapped.compute_transition_scores(got.sequences, got.scores, got.beam_indices)
        close(again, pair.hub.compute_transition_scores(want.sequences, want.scores, want.beam_indices))


def test_generation_goes_on_from_its_cache_as_if_it_had_not_stopped(pair: Pair) -> None:
    whole = generate(pair.wrapped, attention_mask=MASK)
    first = generate(pair.wrapped, attention_mask=MASK, max_new_tokens=2)
    options = {"past_key_values": first.past_key_values, "max_new_tokens": 3}
    longer = torch.nn.functional.pad(MASK, (0, 2), value=1)
    second = generate(pair.wrapped, first.sequences, attention_mask=longer, **options)
    assert torch.equal(second.sequences, whole.sequences)
    close(second.logits, whole.logits[2:])


def test_embeddings_of_a_prompt_go_on_as_its_tokens_do(pair: Pair) -> None:
    options = {"use_history": False, "attention_mask": MASK}
    want = generate(pair.wrapped, **options)
    got = generate(pair.wrapped, None, inputs_embeds=pair.wrapped.get_input_embeddings()(IDS), **options)
    assert torch.equal(got.sequences, want.sequences[:, 7:])
    close(got.logits, want.logits)
    with_tokens = generate(pair.wrapped, inputs_embeds=torch.randn(2, 7, pair.wrapped.config.hidden_size), **options)
    assert torch.equal(with_tokens.sequences[:, :7], IDS)
    assert not torch.allclose(with_tokens.logits[0], want.logits[0])


def test_what_would_take_tokens_back_is_refused(pair: Pair) -> None:
    for options in ({"assistant_model": pair.hub}, {"prompt_lookup_num_tokens": 2}):
        with pytest.raises(ValueError, match="not supported with stateful models, such as LLEForCausalLM"):
            generate(pair.wrapped, IDS[:1], **options)
