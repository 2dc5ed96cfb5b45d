"""What the graphs of language models and of decoders share: a state as inputs and outputs, logits and keys.

Shapes: B batch, T time, D width, V vocabulary.
"""

from collections.abc import Sequence

from ..backbone.recurrence import RecurrentStack
from ..models.causal import LLEForCausalLM
from ..models.seq2seq import LLEForSeq2SeqLM
from .graph import Graph
from .layers import last_positions, normalise, output_layer, state_sizes


def declare_state(graph: Graph, stack: RecurrentStack) -> list[str]:
    """Declares the inputs `state.0`, ..., (B, width) float32, and returns their names."""
    sizes = enumerate(state_sizes(stack))
    return [graph.input(f"state.{place}", "float32", ["batch_size", size]) for place, size in sizes]


def declare_predictions(
    graph: Graph,
    model: LLEForCausalLM | LLEForSeq2SeqLM,
    states: str,
    kept: str,
    stack: RecurrentStack,
    new: Sequence[str],
) -> None:
    """Declares the outputs `logits` (B, kept, V), `keys` (B, T, D) and `new_state.0`, ..., float32.

    Args:
        graph: The graph.
        model: The model with its output layer.
        states: (B, T, D), what the stack returned.
        kept: Scalar int64, the number of last positions that have logits; 0 for all.
        stack: The stack.
        new: Its state after the segment.
    """
    logits = output_layer(graph, model.lm_head, last_positions(graph, states, kept))
    graph.output(logits, "float32", ["batch_size", "kept_length", model.config.vocab_size], "logits")
    keys = normalise(graph, states)
    graph.output(keys, "float32", ["batch_size", "sequence_length", model.config.hidden_size], "keys")
    for place, (part, size) in enumerate(zip(new, state_sizes(stack), strict=True)):
        graph.output(part, "float32", ["batch_size", size], f"new_state.{place}")
