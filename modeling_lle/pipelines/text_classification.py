"""`pipeline("text-classification")` with the history: the nearest examples of each decision, and "none of these"."""

from typing import Any

from transformers import TextClassificationPipeline
from transformers.pipelines.text_classification import ClassificationFunction

from ..bank.protocol import Bank
from ..history.attachment import Attachment
from ..history.explanation import as_values
from ..history.label_rule import REGRESSION
from .labels import history_options, only, with_labels

REFUSED = "out_of_scope"  # label of a refused text; data sets have `data.labelled.OUT_OF_SCOPE_LABEL`


class LLETextClassificationPipeline(TextClassificationPipeline):
    """transformers' pipeline, with more arguments; `import modeling_lle` makes `pipeline()` use it.

    `history` is the bank to recall from, as an Attachment or alone; None: the one that `attach_history` set. Labels
    that only the bank knows are named as it names them.
    With `out_of_scope=True`, each result has its score of "none of these" under `out_of_scope`, the `threshold` that
    `fit_out_of_scope` found, whether the score reaches it as `refused`, and the bank's `mass` (-inf without a bank). A
    refused text gets the label "out_of_scope" with that score.
    With `return_history=True`, each result has under `history` a list of one item, as
    `as_values` makes it of an `Explanation` of the most probable label: its probability by the base and with history,
    the base's share, and the `history_top` examples of the largest effects with their `share`, their `outcome` (the
    label) and, under `columns`, their `text` and `label`. The effects add up to the change. With `top_k`, either makes
    each result a mapping that has the labels under `labels`.

    Example:
        >>> classify = pipeline("text-classification", model=folder)
        >>> classify.model.learn(["is the moon a planet?"], ["astronomy"], classify.tokenizer, new_labels=True)
        >>> result = classify("what is the moon?", return_history=True)[0]
        >>> result["history"][0]["causes"][0]["columns"]["text"]
    """

    def _sanitize_parameters(  # type: ignore[override]
        self,
        out_of_scope: bool | None = None,
        return_history: bool | None = None,
        history_top: int | None = None,
        history: Attachment | Bank | None = None,
        **parameters: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        own = history_options(self.model, bool(out_of_scope or return_history), history)
        if out_of_scope and self.model.config.classifier.out_of_scope.threshold >= 1:
            raise ValueError("the model knows no threshold for out_of_scope: call its fit_out_of_scope() first")
        before, during, after = super()._sanitize_parameters(**parameters)
        during |= own
        if out_of_scope is not None:
            during["output_out_of_scope"] = after["out_of_scope"] = out_of_scope
        if return_history is not None:
            during["return_history"] = after["return_history"] = return_history
        if history_top is not None:
            during["history_top"] = history_top
        return before, during, after

    def preprocess(self, inputs: Any, **options: Any) -> Any:  # type: ignore[override]
        """As transformers'; raises a ValueError for a text without a token."""
        encoded: Any = super().preprocess(inputs, **options)
        if not encoded["input_ids"].shape[-1]:
            raise ValueError(f"there is nothing to classify in the text {inputs!r:.80}: leave it out")
        return encoded

    def _forward(  # type: ignore[override]
        self,
        model_inputs: Any,
        history: Attachment | None = None,
        return_history: bool = False,
        history_top: int = 3,
        **options: Any,
    ) -> Any:
        model: Any = self.model
        if not hasattr(model, "label_names"):
            return super()._forward(model_inputs)
        # Other threads may teach: what is told of the logits is of the state that they are made with.
        attachment = model.recalled_from(history, None)
        output = model(**model_inputs, history=attachment, **options)
        rows = len(output.logits)
        flat = {"logits": output.logits, "label_names": [output.label_names] * rows}  # taken apart item by item
        if output.out_of_scope is not None:
            flat |= {"out_of_scope": output.out_of_scope, "mass": output.mass}
        if return_history:
            own = {name: model_inputs.get(name) for name in ("input_ids", "attention_mask")}
            flat["history"] = model.explain(**own, top=history_top, history=attachment)
        return flat

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: dict[str, Any],
        *args: Any,
        out_of_scope: bool = False,
        return_history: bool = False,
        **rest: Any,
    ) -> Any:
        """As transformers', with what was asked for."""
        if getattr(self.model, "kind", None) == REGRESSION:  # transformers knows it only by the `problem_type`
            rest.setdefault("function_to_apply", ClassificationFunction.NONE)
        names = only(model_outputs.get("label_names"))
        own = self if names is None else with_labels(self, names)
        result: Any = TextClassificationPipeline.postprocess(own, model_outputs, *args, **rest)
        if not (out_of_scope or return_history):
            return result
        found: dict[str, Any] = {}
        if out_of_scope:
            score = float(model_outputs["out_of_scope"][0])
            threshold = float(self.model.config.classifier.out_of_scope.threshold)
            found = {"out_of_scope": score, "threshold": threshold, "refused": score >= threshold}
            found["mass"] = float(model_outputs["mass"][0])
            if found["refused"]:
                refusal = {"label": REFUSED, "score": score}
                result = [refusal] if isinstance(result, list) else refusal
        if return_history:
            tokenizer: Any = self.tokenizer
            found["history"] = as_values([only(model_outputs["history"])], tokenizer)
        return {**(result if isinstance(result, dict) else {"labels": result}), **found}
