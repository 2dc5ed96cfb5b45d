"""The graph of a language model: one for a step and for a whole prompt, with the state as inputs and outputs.

Shapes: B batch, T time, D width, V vocabulary.
"""

from pathlib import Path
from typing import cast

from ..backbone.recurrence import RecurrentStack
from ..models.causal import LLEForCausalLM
from .decoding import declare_predictions, declare_state
from .graph import Graph
from .layers import embed, stack


def write_language_model(model: LLEForCausalLM, path: Path, int8: bool) -> None:
    """Writes the graph of a language model without its history.

    Inputs: `input_ids` (B, T) int64; `num_logits_to_keep`, scalar int64, 0 for all; `state.0`, ... (B, width) float32,
    zeros at the beginning. Outputs: `logits` (B, kept, V) float32; `keys` (B, T, D) float32, the normalised states,
    which are keys and queries; `new_state.0`, ... as `state.0`, ....

    Args:
        model: In float32.
        path: The file.
        int8: Whether to write weights in int8.
    """
    graph = Graph(model, int8)
    ids = graph.input("input_ids", "int64", ["batch_size", "sequence_length"])
    kept = graph.input("num_logits_to_keep", "int64", [])
    own = cast(RecurrentStack, model.model.stack)
    state = declare_state(graph, own)
    states, new = stack(graph, own, embed(graph, model.model.embed_tokens, ids), state)
    declare_predictions(graph, model, states, kept, own, new)
    graph.save(path)
