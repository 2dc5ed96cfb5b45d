"""`pipeline("text-classification")` with the history: the nearest examples of each decision, and "none of these"."""

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from transformers import TextClassificationPipeline
from transformers.pipelines.text_classification import ClassificationFunction

from ..history.label_rule import REGRESSION

OUT_OF_SCOPE = "out_of_scope"


class LLETextClassificationPipeline(TextClassificationPipeline):
    """transformers' pipeline, with more arguments; `import modeling_lle` makes `pipeline()` use it.

    With `out_of_scope=True`, each result has its score of "none of these" under `out_of_scope` and the bank's `mass`
    (-inf without a bank), and a text whose score reaches the threshold that `fit_out_of_scope` found gets the label
    "out_of_scope" with that score. With `return_history=True`, each result has the base's share under `base_share`,
    and under `history` the `history_top` examples of the largest shares: their `text`, `label`, `share` of the
    prediction and `id`. The shares and the base's add up to one. With `top_k`, either makes each result a mapping
    that has the labels under `labels`.

    Example:
        >>> classify = pipeline("text-classification", model=folder)
        >>> classify.model.learn(["is the moon a planet?"], ["astronomy"], classify.tokenizer, new_labels=True)
        >>> classify("what is the moon?", return_history=True)[0]["history"][0]["text"]
    """

    def _sanitize_parameters(  # type: ignore[override]
        self,
        out_of_scope: bool | None = None,
        return_history: bool | None = None,
        history_top: int | None = None,
        **parameters: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if (out_of_scope or return_history) and not hasattr(self.model, "fit_out_of_scope"):
            raise TypeError(
                f"out_of_scope and return_history need an LLE classifier; this is a {type(self.model).__name__}"
            )
        if out_of_scope and self.model.config.classifier.out_of_scope.threshold >= 1:
            raise ValueError("the model knows no threshold for out_of_scope: call its fit_out_of_scope() first")
        before, during, after = super()._sanitize_parameters(**parameters)
        if out_of_scope is not None:
            during["output_out_of_scope"] = after["out_of_scope"] = out_of_scope
        if return_history is not None:
            during["output_history"] = after["return_history"] = return_history
        if history_top is not None:
            after["history_top"] = history_top
        return before, during, after

    def preprocess(self, inputs: Any, **options: Any) -> Any:  # type: ignore[override]
        """As transformers'; raises a ValueError for a text without a token."""
        encoded: Any = super().preprocess(inputs, **options)
        if not encoded["input_ids"].shape[-1]:
            raise ValueError(f"there is nothing to classify in the text {inputs!r:.80}: leave it out")
        return encoded

    def _forward(self, model_inputs: Any, **options: Any) -> Any:  # type: ignore[override]
        bank = getattr(self.model, "history_bank", None)
        if bank is None and not options:
            return super()._forward(model_inputs)
        # Other threads may teach: labels and examples are told of the state that the logits are made with.
        state = None if bank is None else bank.snapshot()
        output = self.model(**model_inputs, bank_state=state, **options)
        flat = {"logits": output.logits}  # the pipeline takes batches apart by the items of each value
        if state is not None:
            flat["bank_state"] = [state] * len(output.logits)
        if output.out_of_scope is not None:
            flat |= {"out_of_scope": output.out_of_scope, "mass": output.mass}
        if output.history is not None:
            flat |= {f"history_{name}": value for name, value in output.history.items()}
        return flat

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: dict[str, Any],
        *args: Any,
        out_of_scope: bool = False,
        return_history: bool = False,
        history_top: int = 3,
        **rest: Any,
    ) -> Any:
        """As transformers', with what was asked for."""
        if getattr(self.model, "kind", None) == REGRESSION:  # transformers knows it only by the `problem_type`
            rest.setdefault("function_to_apply", ClassificationFunction.NONE)
        state = model_outputs.get("bank_state")
        state = state[0] if isinstance(state, list) else state
        model: Any = self.model
        own = self if state is None else self._with_labels(model.space_of(state).names)
        result: Any = TextClassificationPipeline.postprocess(own, model_outputs, *args, **rest)
        if not (out_of_scope or return_history):
            return result
        found: dict[str, Any] = {}
        if out_of_scope:
            score = float(model_outputs["out_of_scope"][0])
            found = {"out_of_scope": score, "mass": float(model_outputs["mass"][0])}
            if score >= self.model.config.classifier.out_of_scope.threshold:
                refused = {"label": OUT_OF_SCOPE, "score": score}
                result = [refused] if isinstance(result, list) else refused
        if return_history:
            found |= self._history(model_outputs, history_top, state)
        return {**(result if isinstance(result, dict) else {"labels": result}), **found}

    def _with_labels(self, names: Sequence[str]) -> Any:
        """This pipeline for labels of these names, whatever those of the model have become."""
        own, labels = copy.copy(self), dict(enumerate(names))
        given = {"id2label": labels, "num_labels": len(labels), "problem_type": self.model.config.problem_type}
        own.model = SimpleNamespace(config=SimpleNamespace(**given))  # type: ignore[assignment]
        return own

    def _history(self, outputs: dict[str, Any], top: int, state: Any) -> dict[str, Any]:
        if "history_shares" not in outputs:
            return {"base_share": 1.0, "history": []}
        shares, ids = outputs["history_shares"][0], outputs["history_ids"][0]
        best = [place for place in shares.argsort(descending=True)[:top].tolist() if float(shares[place]) > 0]
        entries = state.describe(ids[best].tolist())
        history = [
            {**entry.columns, "share": float(shares[place]), "id": entry.id}
            for place, entry in zip(best, entries, strict=True)
        ]
        return {"base_share": float(outputs["history_base_share"][0]), "history": history}
