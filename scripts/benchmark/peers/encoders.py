"""Encoders of texts, whose embeddings a logistic regression classifies: static embeddings, and all-MiniLM-L6-v2.

Notable: the files of wordllama are read by `load_embeddings`, so that its package is not imported. At batch 1 the
encoder is also timed in onnxruntime (`exported.ExportedEncoder`). Shapes: Q queries, D width.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from modeling_lle.embeddings.sources import WordLlama, load_embeddings
from modeling_lle.training.distillation import SentenceEncoder

from .exported import encoder_folder


class StaticEmbeddings:
    """Normalised means of the embeddings of wordllama.

    Raises:
        ImportError: The package with its files is missing.
    """

    def __init__(self) -> None:
        found = load_embeddings(WordLlama.NAME)
        self.matrix = found.matrix.numpy()
        self.backend: Any = found.tokenizer.backend_tokenizer

    @property
    def bytes(self) -> int:
        """Bytes of weights and tokenizer on disk."""
        package = importlib.util.find_spec(WordLlama.NAME)
        assert package is not None
        assert package.origin is not None
        folder = Path(package.origin).parent
        return sum((folder / file).stat().st_size for file in (WordLlama.MATRIX, WordLlama.TOKENIZER))

    def one(self, text: str) -> np.ndarray:
        """Normalised embedding (D,) float32 of a text; zeros for one without a token."""
        ids = self.backend.encode(text, add_special_tokens=False).ids
        mean = self.matrix[ids].sum(0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Normalised embeddings of Q queries, (Q, D) float32."""
        return np.stack([self.one(text) for text in texts])


class MiniLM:
    """all-MiniLM-L6-v2 in torch, normalised means of its last states, as a teacher of LLE reads.

    Raises:
        ImportError: The package with its weights is missing.
    """

    def __init__(self) -> None:
        self.folder = encoder_folder()
        self.encoder = SentenceEncoder(str(self.folder))

    @property
    def bytes(self) -> int:
        """Bytes of weights and tokenizer on disk."""
        return sum((self.folder / file).stat().st_size for file in ("model.safetensors", "tokenizer.json"))

    def one(self, text: str) -> np.ndarray:
        """Normalised embedding (D,) float32 of a text."""
        return self([text])[0]

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Normalised embeddings of Q queries, (Q, D) float32."""
        return self.encoder.encode(texts).numpy()
