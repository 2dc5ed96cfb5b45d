"""Tiny recurrent and hybrid models of transformers, whose states matter: one of each type that can be a backbone."""

import math
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from modeling_lle import LLEConfig, LLEForCausalLM
from tests.factories.language_models import BANK_PARAMETERS, STREAM_PARAMETERS
from tests.factories.texts import VOCAB

SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 1, "bos_token_id": 0}
SIZES |= {"eos_token_id": 0, "tie_word_embeddings": False}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2}
MAMBA2 |= {"mamba_chunk_size": 4}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MIXED = ["linear_attention", "full_attention"]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
# transformers bounds the step of time from below where it reads several tokens, and not where it reads one.
STEPS = {"time_step_min": 1e-9}
CONFIGS: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 4},
    "mamba": {"state_size": 8},
    "falcon_mamba": {"state_size": 8},
    "xlstm": {"num_blocks": 2, "num_heads": 2, "chunk_size": 4, "hidden_size": 64, "qk_dim_factor": 1.0},
    "bamba": {**ATTENTION, **MAMBA2, "attn_layer_indices": [1]},
    "falcon_h1": {**ATTENTION, **MAMBA2, "head_dim": 8, "mamba_d_ssm": 64, "lm_head_multiplier": 0.7},
    "granitemoehybrid": {
        **{**ATTENTION, **MAMBA2, "layers_block_type": ["mamba", "attention"], "logits_scaling": 3.0},
        **{"num_local_experts": 2, "num_experts_per_tok": 1, "shared_intermediate_size": 24},
        **{"position_embedding_type": "rope"},
    },
    "jamba": {
        **{**ATTENTION, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "expert_layer_offset": 1},
        **{"mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    },
    "lfm2": {**ATTENTION, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
    "nemotron_h": {
        **{**ATTENTION, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "ssm_state_size": 8},
        **{"chunk_size": 4, "layers_block_type": ["mamba", "attention", "mamba"], "head_dim": 8, **STEPS},
    },
    "olmo_hybrid": {**ATTENTION, **DELTA, "linear_num_value_heads": 2, "layer_types": MIXED, "head_dim": 8},
    "qwen3_5_text": {**ATTENTION, **DELTA, "layer_types": MIXED, "head_dim": 8},
    "qwen3_next": {
        **{**ATTENTION, **DELTA, **EXPERTS, "layer_types": MIXED, "head_dim": 8},
        **{"shared_expert_intermediate_size": 16, "decoder_sparse_step": 1},
    },
    "zamba": {
        **{
            **ATTENTION,
            "num_key_value_heads": 4,
            "layers_block_type": ["mamba", "hybrid", "hybrid"],
            "mamba_d_state": 8,
        },
        **{
            "num_hidden_layers": 3,
            "mamba_dt_rank": 4,
            "n_mamba_heads": 2,
            "attention_head_dim": 16,
            "use_mamba_kernels": False,
        },
    },
    "zamba2": {
        **{
            **ATTENTION,
            "num_key_value_heads": 4,
            "layers_block_type": ["mamba", "hybrid", "hybrid"],
            "mamba_d_state": 8,
        },
        **{
            "num_hidden_layers": 3,
            "n_mamba_heads": 4,
            "mamba_headdim": 16,
            "mamba_ngroups": 1,
            "chunk_size": 4,
            "num_mem_blocks": 1,
        },
        **{
            "use_mem_rope": True,
            "attention_head_dim": 16,
            "adapter_rank": 4,
            "use_shared_attention_adapter": False,
            **STEPS,
        },
    },
}


def make_config(kind: str, **values: Any) -> Any:
    """The configuration of a tiny model of transformers."""
    return AutoConfig.for_model(kind, **{**SIZES, **CONFIGS.get(kind, {}), **values})


@torch.no_grad()
def scramble(model: torch.nn.Module) -> None:
    """Gives a model weights with which its predictions depend on all that it has read."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        last = name.rpartition(".")[2]
        if last == "A_log" or weight.dim() < 2:
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
        else:
            weight.copy_(torch.randn(weight.shape, generator=generator) * (1.0 / math.sqrt(weight[0].numel())))


def make_hub_model(kind: str, **values: Any) -> PreTrainedModel:
    """A tiny causal language model of transformers in evaluation mode; the same arguments give the same weights."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(kind, **values)).eval()
    scramble(model)
    return model


def make_wrapped_model(kind: str = "mamba2", window: int = 7, **values: Any) -> LLEForCausalLM:
    """A tiny LLE model around one of transformers, in evaluation mode, with its weights."""
    torch.manual_seed(0)
    history = {"stream": {"window": window, **STREAM_PARAMETERS}, "bank": BANK_PARAMETERS}
    history |= values.pop("history", {})
    model = LLEForCausalLM(LLEConfig(backbone_config=make_config(kind, **values), history=history)).eval()
    scramble(model)
    return model
