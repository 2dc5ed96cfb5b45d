"""The graphs of a translator: its encoder, and a step or more of its decoder.

Shapes: E sources, B targets (of one source each, or all of a single source), S tokens of the source, T of the target,
D width, W width of the encoder's states, V vocabulary, H heads.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import numpy as np

from ..backbone.recurrence import RecurrentStack
from ..backbone.source_attention import SourceAttention
from ..models.seq2seq import LLEForSeq2SeqLM
from .decoding import declare_predictions, declare_state
from .graph import Graph
from .layers import LOWEST, Padding, embed, linear, rms_norm, stack


def _attentions(model: LLEForSeq2SeqLM) -> list[SourceAttention]:
    return list(cast(Iterable[SourceAttention], model.model.attentions))


def _head_shape(model: LLEForSeq2SeqLM) -> list[int | str]:
    heads = model.config.translator.num_attention_heads
    return ["source_batch_size", heads, "source_length", model.config.hidden_size // heads]


def write_encoder(model: LLEForSeq2SeqLM, path: Path, int8: bool) -> None:
    """Writes the graph of the encoder.

    Inputs: `input_ids` and `attention_mask` (E, S) int64, padding at the end. Outputs: `last_hidden_state` (E, S, W)
    float32, undefined at padding; `attention_keys.0`, ... and `attention_values.0`, ... (E, H, S, D / H) float32, of
    each layer of the decoder.

    Args:
        model: In float32.
        path: The file.
        int8: Whether to write weights in int8.
    """
    graph, encoder = Graph(model, int8), model.model.encoder
    sources: list[int | str] = ["source_batch_size", "source_length"]
    ids = graph.input("input_ids", "int64", sources)
    padding = Padding.of(graph, graph.input("attention_mask", "int64", sources))
    x = embed(graph, encoder.embed_tokens, ids)
    directions = cast(tuple[RecurrentStack, ...], (encoder.stack, encoder.backward_stack))
    both = [stack(graph, own, x, (), padding, place == 1)[0] for place, own in enumerate(directions)]
    states = graph.add("Concat", *both, axis=-1)
    graph.output(states, "float32", [*sources, encoder.config.state_size], "last_hidden_state")
    for place, attention in enumerate(_attentions(model)):
        pairs = graph.reshape(linear(graph, attention.key_value, states), 0, 0, 2 * attention.heads, -1)
        parts = graph.split(graph.add("Transpose", pairs, perm=[0, 2, 1, 3]), [attention.heads] * 2, axis=1)
        for part, name in zip(parts, ("keys", "values"), strict=True):
            graph.output(part, "float32", _head_shape(model), f"attention_{name}.{place}")
    graph.save(path)


def write_decoder(model: LLEForSeq2SeqLM, path: Path, int8: bool) -> None:
    """Writes the graph of the decoder without a memory.

    Inputs: `input_ids` (B, T) int64; `encoder_attention_mask` (E, S) int64; the `attention_keys` and
    `attention_values` of the encoder; `num_logits_to_keep` and `state.0`, ... as of language models. Outputs:
    `logits` (B, kept, V), `keys` (B, T, D) and `new_state.0`, ... as of language models. E is B, or 1: one source for
    all rows.

    Args:
        model: In float32.
        path: The file.
        int8: Whether to write weights in int8.
    """
    graph, decoder = Graph(model, int8), model.model.decoder
    ids = graph.input("input_ids", "int64", ["batch_size", "sequence_length"])
    mask = graph.input("encoder_attention_mask", "int64", ["source_batch_size", "source_length"])
    attentions = _attentions(model)
    sources = [
        [graph.input(f"attention_{name}.{place}", "float32", _head_shape(model)) for place in range(len(attentions))]
        for name in ("keys", "values")
    ]
    kept = graph.input("num_logits_to_keep", "int64", [])
    own = cast(RecurrentStack, decoder.stack)
    state = declare_state(graph, own)
    real = graph.cast(graph.unsqueeze(graph.unsqueeze(mask, 1), 1), "bool")

    def attend(place: int, x: str) -> str:
        return graph.add("Add", x, _attend(graph, attentions[place], x, sources[0][place], sources[1][place], real))

    states, new = stack(graph, own, embed(graph, decoder.embed_tokens, ids), state, after=attend)
    declare_predictions(graph, model, states, kept, own, new)
    graph.save(path)


def _attend(graph: Graph, module: SourceAttention, x: str, keys: str, values: str, real: str) -> str:
    """Attends from x (B, T, D) to keys and values (E, H, S, D / H) where `real` (E, 1, 1, S) bool; (B, T, D)."""
    query = graph.reshape(linear(graph, module.query, rms_norm(graph, module.norm, x)), 0, 0, module.heads, -1)
    size = module.query.out_features // module.heads
    query = graph.add("Mul", query, graph.constant(np.float32(size**-0.5)))
    query = graph.add("Transpose", query, perm=[0, 2, 1, 3])
    scores = graph.add("MatMul", query, graph.add("Transpose", keys, perm=[0, 1, 3, 2]))
    scores = graph.add("Where", real, scores, graph.constant(LOWEST))
    found = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), values)
    return linear(graph, module.output, graph.reshape(graph.add("Transpose", found, perm=[0, 2, 1, 3]), 0, 0, -1))
