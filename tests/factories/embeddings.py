"""Tiny folders of static embeddings, as packages and models have them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

TEXTS = ["the cat sat on the mat", "a dog saw the cat", "cats and dogs, and a mat", "The Dog sat"]
WIDTH = 6


def make_bpe() -> Tokenizer:
    """A tokenizer in the manner of Llama 2: pieces of whole texts, bytes for unknown characters, a mark in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def make_wordpiece() -> Tokenizer:
    """A tokenizer in the manner of BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=50, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def make_matrix(tokenizer: Tokenizer) -> torch.Tensor:
    """Random embeddings (V, WIDTH) of its types."""
    size = tokenizer.get_vocab_size(), WIDTH
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


def make_wordllama(folder: Path) -> torch.Tensor:
    """The files of a package named wordllama below a folder of packages; returns its matrix."""
    package = folder / "wordllama"
    for name in ("weights", "tokenizers"):
        (package / name).mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it is imported')\n")
    tokenizer = make_bpe()
    matrix = make_matrix(tokenizer).half()
    save_file({"embedding.weight": matrix}, package / "weights" / "l2_supercat_256.safetensors")
    tokenizer.save(str(package / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    return matrix


def make_model2vec(folder: Path, **tensors: torch.Tensor) -> torch.Tensor:
    """A folder of model2vec, with further tensors; returns its matrix."""
    folder.mkdir()
    tokenizer = make_wordpiece()
    matrix = make_matrix(tokenizer)
    save_file({"embeddings": matrix, **tensors}, folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"model_type": "model2vec"}')
    return matrix


def make_sentence_encoder(folder: Path, pooling: dict[str, object] | None = None) -> Path:
    """A tiny sentence encoder in a folder, with the configuration of its pooling; returns the folder."""
    torch.manual_seed(0)
    tokenizer = make_wordpiece()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=tokenizer.get_vocab_size(), **sizes)).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder
