"""LLETokenizer: byte-level BPE without unknown tokens, and whitespace words for the classic benchmarks.

Notable: the BPE decodes to exactly the text that it encoded, whatever that is; both kinds mark the end of a document
or line with `<eos>`, pad with `<pad>` on the left as generation needs it, and are plain fast tokenizers.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BYTE_VALUES = 256
MIN_PAIR_FREQUENCY = 2  # a pair of tokens that occurs once is not worth a type

# Llama 3's split of text, with one digit a piece: contractions, words with the blank or sign before them, signs with
# the line break after them, and runs of blanks that leave the last one to the word, which suits indented code.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Placeholders and markup of software, %(name)s, %1$s, %{n}, {name}, ${name}, <b>, &lt; and the sign before a key that
# selects an item, _File or Sa&ve.
_PLACEHOLDERS = (
    r"[ ]?(?:%\(\w+\)[a-zA-Z]|%<\w+>[a-zA-Z]|%\{[\w.]+\}"
    r"|%(?:\d+\$)?[-+#0]*[\d*]*(?:\.[\d*]+)?(?:hh?|ll?|[Lqjzt])?[a-zA-Z@%]"
    r"|%[1-9]|\$?\{[^{}\s]*\}|\{\{[^{}\n]*\}\}|</?[a-zA-Z][^<>\n]*>|&#?\w+;|[_&](?=\p{L}))"
)


class LLETokenizer(PreTrainedTokenizerFast):
    """Tokenizer of LLE models; `train` makes one, `from_pretrained` and `AutoTokenizer` load it.

    It has no `__init__` of its own, since transformers would then rebuild it without its merges.

    Example:
        >>> tokenizer = LLETokenizer.train(["the cat sat on the mat"], vocab_size=300)
        >>> tokenizer.decode(tokenizer.encode("the mat\\n\\tsat"))
        'the mat\\n\\tsat'
        >>> words = LLETokenizer.train(["the cat sat on the mat"], kind="word")
        >>> words.tokenize("the dog sat\\n")
        ['the', '<unk>', 'sat', '<eos>']
    """

    _auto_class = "AutoTokenizer"  # saving copies this file, for `trust_remote_code`

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int | None = None,
        kind: Literal["bpe", "word"] = "bpe",
        lowercase: bool = False,
        ends_texts: bool = False,
        placeholders: bool = False,
    ) -> "LLETokenizer":
        """Trains a tokenizer.

        Args:
            texts: Documents or lines, read once.
            vocab_size: Number of types, the special ones included. None, for words only: all types of `texts`.
            kind: "bpe" for byte-level BPE, which encodes any text without loss, or "word" for whitespace tokens with
                `<eos>` for line breaks and `<unk>` for words that `texts` lack.
            lowercase: Whether capital letters are read as small ones, and the first word as one within a text: right
                for classifiers, wrong where text is to be written.
            ends_texts: Whether every text gets an `<eos>` at its end, and padding comes after it: right for
                translators, whose texts have a beginning and an end, wrong where one is to be continued.
            placeholders: Whether placeholders, markup and the signs of keys (`%s`, `{name}`, `<b>`, the `_` of
                `_File`) stand apart from the words beside them, for messages of software; needs kind "bpe".

        Returns:
            A tokenizer with at most `vocab_size` types, fewer where `texts` do not hold so many.
        """
        if kind not in ("bpe", "word"):
            raise ValueError(f"kind must be 'bpe' or 'word', got {kind!r}")
        if kind == "word" and placeholders:
            raise ValueError("words are split at blanks only: placeholders=True needs kind='bpe'")
        if kind == "word":
            tokenizer = cls._train_words(texts, vocab_size, lowercase)
        else:
            tokenizer = cls._train_bpe(texts, vocab_size, lowercase, placeholders)
        if ends_texts:
            end = tokenizer.eos_token
            tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single=f"$A {end}", pair=f"$A {end} $B:1 {end}:1", special_tokens=[(end, tokenizer.eos_token_id)]
            )
            tokenizer.padding_side = "right"
        return tokenizer

    @classmethod
    def _train_bpe(
        cls, texts: Iterable[str], vocab_size: int | None, lowercase: bool, placeholders: bool
    ) -> "LLETokenizer":
        template = cls._bpe_template(lowercase, placeholders)
        least = BYTE_VALUES + len(template)
        if vocab_size is None or vocab_size < least:
            raise ValueError(
                f"a byte-level vocabulary needs vocab_size of at least {least} ({BYTE_VALUES} bytes and the special "
                f"tokens), got {vocab_size}"
            )
        return template.train_new_from_iterator(
            _some(texts), vocab_size, min_frequency=MIN_PAIR_FREQUENCY, show_progress=False
        )

    @classmethod
    def _bpe_template(cls, lowercase: bool, placeholders: bool = False) -> "LLETokenizer":
        """The untrained byte-level BPE: special tokens only."""
        pieces = f"{_PLACEHOLDERS}|{_PIECES}" if placeholders else _PIECES
        backend = Tokenizer(models.BPE())
        if lowercase:
            backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Prepend(" ")])
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pieces), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        return cls._wrap(backend)

    @classmethod
    def _train_words(cls, texts: Iterable[str], vocab_size: int | None, lowercase: bool) -> "LLETokenizer":
        special = ["<eos>", "<pad>", "<unk>"]
        if vocab_size is not None and vocab_size <= len(special):
            raise ValueError(
                f"a vocabulary of words needs vocab_size of more than its {len(special)} special tokens, "
                f"got {vocab_size}"
            )
        read = (text.lower() if lowercase else text for text in _some(texts))
        counts = Counter(word for text in read for word in text.split() if word not in special)
        if not counts:
            raise ValueError("cannot train a tokenizer: the texts hold no words")
        words = sorted(counts, key=lambda word: (-counts[word], word))
        types = [*special, *words][:vocab_size]
        backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(types)}, unk_token="<unk>"))
        lines = normalizers.Replace("\n", " <eos> ")
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), lines]) if lowercase else lines
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        # WordPiece joins with blanks; no word holds a line break, so its prefix never occurs.
        backend.decoder = decoders.Sequence(
            [
                decoders.WordPiece(prefix="\n", cleanup=False),
                decoders.Fuse(),
                decoders.Replace(Regex(" ?<eos> ?"), "\n"),
            ]
        )
        return cls._wrap(backend, unk_token="<unk>")

    @classmethod
    def _wrap(cls, backend: Tokenizer, **special_tokens: str) -> "LLETokenizer":
        return cls(
            tokenizer_object=backend,
            pad_token="<pad>",
            bos_token="<eos>",
            eos_token="<eos>",
            padding_side="left",
            clean_up_tokenization_spaces=False,
            model_input_names=["input_ids", "attention_mask"],
            **special_tokens,
        )


def _some(texts: Iterable[str]) -> Iterator[str]:
    """The texts that are not empty; raises a ValueError when there are none."""
    empty = True
    for text in texts:
        if text:
            empty = False
            yield text
    if empty:
        raise ValueError("cannot train a tokenizer: the texts are empty")
