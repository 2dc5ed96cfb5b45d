"""Picture of a translator's attention: for each target token, the weights of the source tokens.

Notable: byte-level pieces of one letter share a row or column.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..common.modes import evaluating
from ..data.text import encode_sentences
from ..entries.pairs import padded
from ..models.seq2seq import LLEForSeq2SeqLM
from .pictures import FAINT, INK, Figure, make_figure, style

CELL = 0.34  # inches
LETTER = 0.09  # inches, width of a letter of a token
CONTINUED = "·"  # before a token that continues a word
UNREADABLE = "\ufffd"  # decoded from part of a letter
LONGEST_LETTER = 4  # bytes


def draw_translation(
    model: LLEForSeq2SeqLM,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    translation: str,
    title: str | None = None,
) -> Figure:
    """Draws the attention of the decoder to the source, averaged over layers and heads.

    Args:
        model: Translator.
        tokenizer: Its tokenizer.
        text, translation: A sentence and any translation of it.
        title: Title of the figure.
    """
    (source,), (target,) = (encode_sentences([side], tokenizer) for side in (text, translation))
    columns, rows = readable(tokenizer, source), readable(tokenizer, target)
    weights = source_attention(model, source, target, tokenizer.pad_token_id)
    weights = np.stack([weights[:, own].sum(1) for _, own in columns], axis=1)
    weights = np.stack([weights[own].mean(0) for _, own in rows])
    return draw_attention(weights, [name for name, _ in columns], [name for name, _ in rows], title)


@torch.no_grad()
def source_attention(model: LLEForSeq2SeqLM, source: list[int], target: list[int], pad_token_id: int) -> np.ndarray:
    """Attention of the decoder to the source for each predicted target token.

    Args:
        model: Translator.
        source, target: Token ids.
        pad_token_id: Padding of batches, unused for a single pair.

    Returns:
        (target tokens, source tokens) float32, mean over layers and heads; rows sum to 1.
    """
    batch = {name: value.to(model.device) for name, value in padded([source], [target], pad_token_id).items()}
    with evaluating(model):
        found = model(**batch, use_history=False, output_attentions=True, return_logits=False).cross_attentions
    return torch.stack(found).float().mean((0, 2))[0].cpu().numpy()


def readable(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[tuple[str, slice]]:
    """Labels of tokens with their slices; several tokens share a label if each is part of a letter."""
    pieces: list[tuple[str, slice]] = []
    before, start = "", 0
    for end in range(1, len(ids) + 1):
        whole = str(tokenizer.decode(list(ids[:end])))
        if whole.endswith(UNREADABLE) and end - start < LONGEST_LETTER and end < len(ids):
            continue
        pieces.append((_shown(whole[len(before) :], before), slice(start, end)))
        before, start = whole, end
    if ids and ids[-1] == tokenizer.eos_token_id and pieces[-1][1] == slice(len(ids) - 1, len(ids)):
        pieces[-1] = (tokenizer.eos_token, pieces[-1][1])
    return pieces


def _shown(piece: str, before: str) -> str:
    """Label of a piece of text: continuations of a word are marked, and blank pieces are made visible."""
    text = piece.strip()
    if not text:
        return repr(piece)[1:-1].replace(" ", "␣")
    goes_on = before[-1:].isalnum() and piece[0].isalnum()
    return CONTINUED + text if goes_on else text


def draw_attention(
    weights: np.ndarray, source: Sequence[str], target: Sequence[str], title: str | None = None
) -> Figure:
    """Draws attention weights of target tokens on source tokens; darker means more.

    Args:
        weights: (target tokens, source tokens) floats from 0 to 1.
        source, target: Labels of the tokens.
        title: Title of the figure.

    Raises:
        ValueError: Numbers of labels and weights differ, or are 0.
    """
    if weights.shape != (len(target), len(source)) or not weights.size:
        raise ValueError(
            f"the weights have the shape {weights.shape}, and there are {len(target)} tokens of the target and "
            f"{len(source)} of the source"
        )
    across, down = CELL * len(source), CELL * len(target)
    beside, above = (LETTER * max(map(len, labels)) for labels in (target, source))
    figure = make_figure(across + beside + 2.2, down + above + (1.6 if title else 1.1), title)
    axes = figure.subplots()
    style(axes, "", "source", "translation")
    cells = axes.pcolormesh(
        np.arange(len(source) + 1),
        np.arange(len(target) + 1),
        weights,
        cmap="Blues",
        vmin=0,
        edgecolors=FAINT,
        linewidth=0.4,
    )
    key = figure.colorbar(cells, ax=axes, aspect=30, pad=0.03, format=lambda share, _: f"{share:.0%}")
    key.set_label("share of the attention", color=INK)
    key.outline.set_visible(False)
    key.ax.tick_params(labelsize=8, colors=INK, length=0)
    axes.set_xticks(np.arange(len(source)) + 0.5, list(source), rotation=60, ha="left", rotation_mode="anchor")
    axes.set_yticks(np.arange(len(target)) + 0.5, list(target))
    axes.xaxis.set_ticks_position("top")
    axes.xaxis.set_label_position("top")
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(labelsize=10, colors=INK, length=0, pad=3)
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        label.set_parse_math(False)  # a dollar sign is not a formula
    return figure
