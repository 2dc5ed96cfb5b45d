"""`pipeline("token-classification")` with the history: labels that only the bank knows, and the nearest examples."""

from typing import Any

from transformers import TokenClassificationPipeline

from ..bank.protocol import Bank
from ..history.attachment import Attachment
from ..history.explanation import as_values
from .labels import history_options, only, with_labels


class LLETokenClassificationPipeline(TokenClassificationPipeline):
    """transformers' pipeline, with more arguments; `import modeling_lle` makes `pipeline()` use it.

    `history` is the bank to recall from, as an Attachment or alone; None: the one that `attach_history` set. Labels
    that only the bank knows are named as it names them. With `return_history=True`, which is for single tokens, each
    has its history under `history`, a list of one item with `history_top` examples, as for whole texts.

    Example:
        >>> tag = pipeline("token-classification", model=folder)
        >>> tag.model.learn([["to", "Mars"]], [[None, "planet"]], tag.tokenizer, new_labels=True)
        >>> tag("from Mars", aggregation_strategy="simple")
    """

    def _sanitize_parameters(  # type: ignore[override]
        self,
        return_history: bool | None = None,
        history_top: int | None = None,
        history: Attachment | Bank | None = None,
        **parameters: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        own = history_options(self.model, bool(return_history), history)
        if return_history and str(parameters.get("aggregation_strategy") or "none").lower() != "none":
            raise ValueError("return_history is told of single tokens: leave aggregation_strategy out")
        before, during, after = super()._sanitize_parameters(**parameters)
        during |= own
        if return_history is not None:
            during["return_history"] = after["return_history"] = return_history
        if history_top is not None:
            during["history_top"] = history_top
        return before, during, after

    def _forward(  # type: ignore[override]
        self,
        model_inputs: dict[str, Any],
        history: Attachment | None = None,
        return_history: bool = False,
        history_top: int = 3,
    ) -> dict[str, Any]:
        model: Any = self.model
        if not hasattr(model, "label_names"):
            return super()._forward(model_inputs)
        # Other threads may teach: what is told of the logits is of the state that they are made with.
        attachment = model.recalled_from(history, None)
        outputs = super()._forward({**model_inputs, "history": attachment})
        del outputs["history"]
        outputs["label_names"] = [model.label_names(attachment)] * len(outputs["logits"])
        if return_history:
            ids, mask = outputs["input_ids"], outputs.get("attention_mask")
            own = (None if mask is None else mask[row : row + 1] for row in range(len(ids)))
            outputs["history"] = [
                tuple(model.explain(ids[row : row + 1], real, top=history_top, history=attachment))
                for row, real in enumerate(own)
            ]
        return outputs

    def postprocess(  # type: ignore[override]
        self, all_outputs: list[dict[str, Any]], *args: Any, return_history: bool = False, **rest: Any
    ) -> Any:
        """As transformers', with what was asked for."""
        names = only(all_outputs[0].get("label_names"))
        own = self if names is None else with_labels(self, names)
        entities: Any = TokenClassificationPipeline.postprocess(own, all_outputs, *args, **rest)
        if return_history:
            tokenizer: Any = self.tokenizer
            of_token = {item.position: item for item in only(all_outputs[0]["history"])}
            for entity in entities:
                entity["history"] = as_values([of_token[int(entity["index"])]], tokenizer)
        return entities
