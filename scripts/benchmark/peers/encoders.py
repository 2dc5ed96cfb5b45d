"""Encoders of texts, whose embeddings a logistic regression classifies: static embeddings, and all-MiniLM-L6-v2.

Notable: the files of wordllama are read by `load_embeddings`, so that its package is not imported. At batch 1 the
encoder is also timed in onnxruntime (`exported.ExportedEncoder`). Shapes: Q queries, T time, D width.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

from modeling_lle.embeddings.sources import WordLlama, load_embeddings

from .exported import encoder_folder

BATCH = 64  # texts
LONGEST = 256  # tokens of a text, as the encoder's own settings have it


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


class SentenceEncoder:
    """all-MiniLM-L6-v2 in torch: normalised means of its last states.

    Raises:
        ImportError: The package with its weights is missing.
    """

    def __init__(self) -> None:
        self.folder = encoder_folder()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.folder)
        self.model: Any = AutoModel.from_pretrained(self.folder).eval()

    @property
    def bytes(self) -> int:
        """Bytes of weights and tokenizer on disk."""
        return sum((self.folder / file).stat().st_size for file in ("model.safetensors", "tokenizer.json"))

    def one(self, text: str) -> np.ndarray:
        """Normalised embedding (D,) float32 of a text."""
        return self([text])[0]

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> np.ndarray:
        """Normalised embeddings of Q queries, (Q, D) float32."""
        found = np.empty((len(texts), self.model.config.hidden_size), np.float32)
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # of like length: little padding
        for start in range(0, len(texts), BATCH):
            chosen = order[start : start + BATCH]
            batch = self.tokenizer(
                [texts[place] for place in chosen],
                padding=True,
                truncation=True,
                max_length=LONGEST,
                return_tensors="pt",
            )
            states, mask = self.model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            found[chosen] = nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).numpy()
        return found
