"""Smaller vocabularies: a tokenizer keeps the types that occur in given texts, and what spells anything else.

Notable: the texts are tokenised as before. Others are too, as far as their types are kept; the rest is spelt in
shorter ones. A piece of byte-pair encoding also needs the pieces that it is merged from.
"""

import itertools
import json
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

BYTE_VALUES = 256
KINDS = ("BPE", "WordPiece", "WordLevel", "Unigram")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a type for a byte, where characters without a type are spelt in bytes


def prune(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[Tokenizer, list[int]]:
    """Makes a tokenizer with the types that occur in texts, special ones, and those that spell any text.

    The latter are bytes, or where the tokenizer has none, all single characters.

    Args:
        tokenizer: Of one of `KINDS`, without a post-processor; it is not changed.
        texts: The texts.

    Returns:
        The tokenizer, and the ids that its types have in the given one, in ascending order.

    Raises:
        ValueError: The tokenizer is of another kind.
    """
    values = json.loads(tokenizer.to_str())
    model = values["model"]
    if model["type"] not in KINDS or (model["type"] == "BPE" and model["continuing_subword_prefix"]):
        raise ValueError(f"a tokenizer of the kind {model['type']} cannot be pruned here: leave prune out")
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    found = {
        number for encoded in tokenizer.encode_batch(list(texts), add_special_tokens=False) for number in encoded.ids
    }
    kept = {token for token, number in vocabulary.items() if number in found}
    kept |= {added["content"] for added in values["added_tokens"]} | _spelling(model, vocabulary)
    if model["type"] == "BPE":
        ranks = {pair: rank for rank, pair in enumerate(_pairs(model))}
        kept |= {part for token in list(kept) for part in _parts(token, ranks, model["end_of_word_suffix"] or "")}
    ids = sorted(vocabulary[token] for token in kept & vocabulary.keys())
    places = {old: new for new, old in enumerate(ids)}
    _renumber(values, {token: places[old] for token, old in vocabulary.items() if old in places})
    return Tokenizer.from_str(json.dumps(values)), ids


def _spelling(model: dict[str, Any], vocabulary: dict[str, int]) -> set[str]:
    """The types that spell any text, and the one for what has no type."""
    unknown = _unknown(model)
    found = set() if unknown is None else {unknown}
    spelt = {token for token in vocabulary if _BYTE.fullmatch(token)}
    if len(spelt) == BYTE_VALUES:
        return found | spelt | {token for token in vocabulary if len(token) == 1 and token.isascii()}
    before, after = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    return found | {token for token in vocabulary if len(token.removeprefix(before).removesuffix(after)) == 1}


def _unknown(model: dict[str, Any]) -> str | None:
    """The type for what has no type."""
    if model["type"] != "Unigram":
        return model["unk_token"]
    return None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]


def _pairs(model: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of byte-pair encoding, the first ones first."""
    return [tuple(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in model["merges"]]


def _parts(token: str, ranks: dict[tuple[str, str], int], suffix: str) -> set[str]:
    """The pieces that byte-pair encoding makes on the way to a type, from its characters on."""
    pieces = list(token.removesuffix(suffix))
    if pieces and suffix and token.endswith(suffix):
        pieces[-1] += suffix
    found = set(pieces)
    while len(pieces) > 1:
        rank, place = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(itertools.pairwise(pieces)))
        if rank == len(ranks):
            break
        pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
        found.add(pieces[place])
    return found


def _renumber(values: dict[str, Any], numbers: dict[str, int]) -> None:
    """Gives the types of a tokenizer other numbers, in place; types without one are left out."""
    model = values["model"]
    if model["type"] == "Unigram":
        unknown = _unknown(model)
        own = [(token, score) for token, score in model["vocab"] if token in numbers]
        model["vocab"] = sorted(own, key=lambda item: numbers[item[0]])
        model["unk_id"] = None if unknown is None else numbers[unknown]
    else:
        model["vocab"] = {token: numbers[token] for token in model["vocab"] if token in numbers}
    if model["type"] == "BPE":
        model["merges"] = [pair for pair in _pairs(model) if {*pair, "".join(pair)} <= model["vocab"].keys()]
    for added in values["added_tokens"]:
        added["id"] = numbers[added["content"]]
