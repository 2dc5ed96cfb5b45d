"""Speed and size of a small encoder of transformers: six layers of width 384, as in MiniLM (arXiv:2002.10957).

Notable: its weights are random and its answers mean nothing; time and bytes are those of a trained one. So are its
tokens: each word and each punctuation mark, at which BERT's tokenizer splits first, becomes one token whose number is
a hash of it, between the two that BERT adds. The real tokenizer splits rare words further and looks every piece up,
so that the real encoder is no faster. Shapes: T tokens.
"""

import re
import tempfile
import zlib
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

VOCABULARY = 30_522
BEGIN, END = 101, 102  # the numbers of [CLS] and [SEP]
LONGEST = 512
_WORDS = re.compile(r"\w+|[^\w\s]")


def made_tokens(text: str) -> list[int]:
    """A number for each word and punctuation mark, the same for the same, between those of [CLS] and [SEP]."""
    words = _WORDS.findall(text.lower())[: LONGEST - 2]
    return [BEGIN, *(zlib.crc32(word.encode()) % VOCABULARY for word in words), END]


class SmallEncoder:
    """A randomly initialised `BertForSequenceClassification` in evaluation mode, in float32.

    Args:
        intents: C.
    """

    def __init__(self, intents: int) -> None:
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            max_position_embeddings=LONGEST,
        )
        config.num_labels = intents
        self.model = BertForSequenceClassification(config).eval()

    @property
    def bytes(self) -> int:
        """The size of the weights as `save_pretrained` writes them."""
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))

    @torch.inference_mode()
    def predict(self, text: str) -> int:
        """The label of one query."""
        return int(self.model(torch.tensor([made_tokens(text)])).logits.argmax())
