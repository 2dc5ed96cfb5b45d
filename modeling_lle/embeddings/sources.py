"""Pretrained static embeddings of token types, to begin a model with: of wordllama, model2vec, or any model's input.

Notable: an embedding belongs to a type of one tokenizer, so that the tokenizer comes with it. The files of wordllama's
wheel and of model2vec's folders are read directly: neither package is imported, and nothing is downloaded for
wordllama. Shapes: V vocabulary, E width of an embedding.
"""

import importlib.util
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from tokenizers import AddedToken, Tokenizer, normalizers
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file

from .pruning import prune as pruned

PADDING = ("<pad>", "[PAD]", "<|pad|>")  # as tokenizers call it; the first one is added where there is none


@dataclass(frozen=True)
class StaticEmbeddings:
    """Embeddings of token types, and the tokenizer that they belong to.

    Attributes:
        matrix: (V, E) float32, a row for each id of the tokenizer; that of padding is 0 if it had none.
        tokenizer: Encodes texts without special tokens at their ends.
    """

    matrix: Tensor
    tokenizer: PreTrainedTokenizerBase

    def sizes(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of the configuration of a model that begins with these embeddings.

        Raises:
            ValueError: The `fields` that it gets beside them say something else.
        """
        V, E = self.matrix.shape
        own = {"vocab_size": V, "embedding_size": E, "pad_token_id": self.tokenizer.pad_token_id}
        for name, value in own.items():
            if fields.get(name, value) != value:
                raise ValueError(f"{name} is {fields[name]}, but that of the embeddings is {value}: leave it out")
        return own

    @torch.no_grad()
    def put_into(self, model: PreTrainedModel) -> None:
        """Copies the matrix into the input embeddings of a model; members of an ensemble get a copy each."""
        weight: Any = model.get_input_embeddings().weight
        weight.copy_(self.matrix.repeat(1, weight.shape[1] // self.matrix.shape[1]))


class EmbeddingSource(Protocol):
    """Where static embeddings come from."""

    def has(self, name: str) -> bool:
        """Whether a name or folder means embeddings of this source."""
        ...

    def read(self, name: str) -> tuple[Tensor, Tokenizer]:
        """Reads a matrix (V, E) floating, and the tokenizer whose ids are its rows."""
        ...


class WordLlama:
    """The embeddings that the wheel of the package wordllama includes: 32,000 types of Llama 2, a width of 256."""

    NAME = "wordllama"
    MATRIX = Path("weights", "l2_supercat_256.safetensors")
    TOKENIZER = Path("tokenizers", "l2_supercat_tokenizer_config.json")

    def has(self, name: str) -> bool:
        """Whether it is the package's name."""
        return name == self.NAME

    def read(self, name: str) -> tuple[Tensor, Tokenizer]:
        """Reads the files of the package; raises an ImportError if it is not installed, or lacks them."""
        found = importlib.util.find_spec(self.NAME)  # not imported: it sets up logging, and needs more packages
        if found is None or found.origin is None:
            raise ImportError("the embeddings of wordllama need its package: pip install modeling_lle[embeddings]")
        folder = Path(found.origin).parent
        missing = [file for file in (self.MATRIX, self.TOKENIZER) if not (folder / file).is_file()]
        if missing:
            raise ImportError(
                f"the installed wordllama has no {missing[0]}: pip install --upgrade modeling_lle[embeddings]"
            )
        return _tensor(folder / self.MATRIX, "embedding.weight"), Tokenizer.from_file(str(folder / self.TOKENIZER))


class Model2Vec:
    """A model of model2vec, or a static model of sentence-transformers, in a folder or on the Hub."""

    # Where each has its tensors, their name, and its tokenizer.
    LAYOUTS = (
        ("model.safetensors", "embeddings", "tokenizer.json"),
        ("model.safetensors", "embedding.weight", "tokenizer.json"),
        ("0_StaticEmbedding/model.safetensors", "embedding.weight", "0_StaticEmbedding/tokenizer.json"),
    )

    def has(self, name: str) -> bool:
        """Whether its files are there, and its configuration is not that of a model of transformers."""
        return _model_type(name) not in CONFIG_MAPPING and self._find(name) is not None

    def read(self, name: str) -> tuple[Tensor, Tokenizer]:
        """Reads the files; types that share a row of a quantised vocabulary get a copy of it, times their weight."""
        found = self._find(name)
        assert found is not None
        file, key, tokenizer = found
        matrix = _tensor(file, key).float()
        with safe_open(file, framework="pt") as tensors:
            names = set(tensors.keys())
            if "mapping" in names:
                matrix = matrix[tensors.get_tensor("mapping").long()]
            if "weights" in names:
                matrix = matrix * tensors.get_tensor("weights").float()[:, None]
        return matrix, Tokenizer.from_file(str(tokenizer))

    def _find(self, name: str) -> tuple[Path, str, Path] | None:
        for file, key, tokenizer in self.LAYOUTS:
            tensors, beside = _file(name, file), _file(name, tokenizer)
            if tensors is None or beside is None:
                continue
            with safe_open(tensors, framework="pt") as opened:
                if key in opened.keys():  # noqa: SIM118
                    return tensors, key, beside
        return None


class OfTransformers:
    """The input embeddings of a model of transformers, in a folder or on the Hub."""

    def has(self, name: str) -> bool:
        """Whether its configuration is of a type that transformers has."""
        return _model_type(name) in CONFIG_MAPPING

    def read(self, name: str) -> tuple[Tensor, Tokenizer]:
        """Loads the model and its tokenizer; raises a ValueError if that is not a fast one."""
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
        if not tokenizer.is_fast:
            raise ValueError(f"the tokenizer of {name} is not a fast one: choose another model for the embeddings")
        embeddings: Any = AutoModel.from_pretrained(name).get_input_embeddings()
        return embeddings.weight.detach(), Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())


SOURCES: tuple[EmbeddingSource, ...] = (WordLlama(), OfTransformers(), Model2Vec())


def load_embeddings(
    name: str | os.PathLike[str], lowercase: bool = False, texts: Iterable[str] | None = None
) -> StaticEmbeddings:
    """Loads static embeddings and their tokenizer.

    Args:
        name: "wordllama", or the folder or the name on the Hub of a model2vec model or of any model of transformers,
            whose input embeddings are taken.
        lowercase: Whether the tokenizer is to read capital letters as small ones.
        texts: Keeps only the types that occur in them, and what spells anything else (`prune`); None: all.

    Raises:
        ImportError: wordllama is not installed.
        ValueError: There are no embeddings of this name, or tokenizer and matrix do not fit.
    """
    source = next((source for source in SOURCES if source.has(str(name))), None)
    if source is None:
        raise ValueError(
            f"no embeddings at {name}: give 'wordllama', or the folder or name on the Hub of a model2vec model or of "
            "a model of transformers"
        )
    matrix, backend = source.read(str(name))
    size = backend.get_vocab_size(with_added_tokens=True)
    if size > len(matrix):
        raise ValueError(f"the tokenizer of {name} has {size} types, but {len(matrix)} have embeddings: repair it")
    backend = _without_ends(backend, lowercase)
    ids = list(range(size))
    if texts is not None:
        backend, ids = pruned(backend, texts)
    return StaticEmbeddings(*_with_padding(matrix[ids].float(), backend))


def _without_ends(backend: Tokenizer, lowercase: bool) -> Tokenizer:
    """The tokenizer without special tokens around a text, padding and truncation: the model looks after these."""
    values = json.loads(backend.to_str())
    values |= {"post_processor": None, "padding": None, "truncation": None}
    own = Tokenizer.from_str(json.dumps(values))
    if lowercase:
        parts = [normalizers.Lowercase()] + ([] if own.normalizer is None else [own.normalizer])
        own.normalizer = normalizers.Sequence(parts)
    return own


def _with_padding(matrix: Tensor, backend: Tokenizer) -> tuple[Tensor, PreTrainedTokenizerBase]:
    """Adds a type for padding where there is none, with an embedding of 0."""
    padding = next((name for name in PADDING if backend.token_to_id(name) is not None), None)
    if padding is None:
        padding = PADDING[0]
        backend.add_special_tokens([AddedToken(padding, special=True, normalized=False)])
        matrix = torch.cat([matrix, matrix.new_zeros(1, matrix.shape[1])])
    unknown = getattr(backend.model, "unk_token", None)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=padding,
        unk_token=unknown,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    return matrix, tokenizer


def _model_type(name: str) -> str | None:
    """The `model_type` in the configuration of a folder or a repository on the Hub; None without."""
    file = _file(name, "config.json")
    return None if file is None else json.loads(file.read_text(encoding="utf-8")).get("model_type")


def _file(name: str, file: str) -> Path | None:
    """A file of a folder or of a repository on the Hub; None if there is none."""
    found = cached_file(
        name,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if found is None else Path(found)


def _tensor(file: Path, key: str) -> Tensor:
    with safe_open(file, framework="pt") as tensors:
        found: Tensor = tensors.get_tensor(key)
    return found
