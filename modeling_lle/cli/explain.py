"""Command that explains predictions: `lle explain`. Heavy imports are deferred until the command runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..common.terminal import printable, say
from ..tasks import CLASSIFICATION, LANGUAGE, TRANSLATION
from .options import Folder, InPrecision, LooseBank, Namespaces, Precision, task_of_command
from .texts import encode_whole, read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..evaluation.explanations import Passage
    from ..models.causal import LLEForCausalLM
    from ..models.classification import LLEForSequenceClassification
    from ..models.seq2seq import LLEForSeq2SeqLM

LABELS = 3  # of a single text that are explained: the most probable ones


def explain(
    model: Folder,
    text: Annotated[str, typer.Argument(help="A text, or a file with it; of several texts or sentences, one a line.")],
    bank_path: LooseBank = None,
    namespace: Namespaces = None,
    top: Annotated[int, typer.Option(min=1, help="Entries to show for each token or label.")] = 3,
    precision: InPrecision = Precision.auto,
    output: Annotated[Path | None, typer.Option(help="HTML page to write.")] = None,
) -> None:
    """Shows which entries changed a prediction, and by how much exactly.

    Of a language model each token of the text, of a classifier the most probable labels, of a translator each token of
    the translation. Classifiers and translators recall from the bank in the model's folder, unless --bank names one.
    """
    from ..common.precision import in_precision
    from ..evaluation.explanations import format_explanations, format_totals, write_page
    from ..saved import attach_bank, load_classifier, load_language_model, load_translator

    task = task_of_command(model)
    loaders: dict[str, Any] = {
        LANGUAGE.name: load_language_model,
        CLASSIFICATION.name: load_classifier,
        TRANSLATION.name: load_translator,
    }
    given = read_text(text)
    loaded, tokenizer = loaders[task.name](model)
    if task != LANGUAGE or bank_path is not None:
        attach_bank(loaded, tokenizer, model, bank_path, namespace or None)
    with in_precision(loaded, precision.value):
        passages = _EXPLAIN[task.name](loaded, tokenizer, given, top)
    for passage in passages:
        if passage.given is not None:
            typer.echo(typer.style(printable(passage.given), underline=True))
        typer.echo(format_explanations(passage.explanations, tokenizer))
    if task == LANGUAGE:
        say(format_totals(passages[0].explanations))
    if output is not None:
        unit: Any = "token" if task != CLASSIFICATION else "value" if loaded.kind == "regression" else "label"
        shown: Any = passages if task != LANGUAGE else passages[0].explanations
        write_page(output, shown, tokenizer, f"What {model} recalls", unit)
        say(f"The page is {output}.")


def _lines(given: str) -> list[str]:
    lines = [line.strip() for line in given.splitlines() if line.strip()]
    if not lines:
        raise ValueError("nothing to explain: the text is empty")
    return lines


def _text(model: "LLEForCausalLM", tokenizer: "PreTrainedTokenizerBase", given: str, top: int) -> "list[Passage]":
    """The tokens of a text."""
    import torch

    from ..evaluation.explanations import Passage

    tokens = encode_whole(given, tokenizer)
    return [Passage(model.explain(torch.tensor([tokenizer.eos_token_id, *tokens[:-1]]), top))]


def _labels(
    model: "LLEForSequenceClassification", tokenizer: "PreTrainedTokenizerBase", given: str, top: int
) -> "list[Passage]":
    """The label of each text; of a single text the most probable ones."""
    import torch

    from ..evaluation.explanations import Passage

    passages = []
    lines = _lines(given)
    for line in lines:
        inputs = dict(tokenizer(line, return_tensors="pt"))
        targets = None
        if len(lines) == 1 and model.kind != "regression":
            with torch.no_grad():
                logits = model(**inputs).logits[0]
            targets = logits.topk(min(LABELS, len(logits))).indices
            inputs = {name: tensor.expand(len(targets), -1) for name, tensor in inputs.items()}
        found = model.explain(inputs["input_ids"], inputs["attention_mask"], targets=targets, top=top)
        passages.append(Passage(found, line))
    return passages


def _translations(
    model: "LLEForSeq2SeqLM", tokenizer: "PreTrainedTokenizerBase", given: str, top: int
) -> "list[Passage]":
    """The tokens of the translation of each sentence."""
    from ..evaluation.explanations import Passage

    passages = []
    for line in _lines(given):
        inputs = tokenizer(line, return_tensors="pt")
        passages.append(Passage(model.explain(inputs["input_ids"], inputs["attention_mask"], top=top), line))
    return passages


_EXPLAIN: dict[str, Any] = {LANGUAGE.name: _text, CLASSIFICATION.name: _labels, TRANSLATION.name: _translations}
