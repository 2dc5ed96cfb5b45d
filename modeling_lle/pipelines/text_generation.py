"""`pipeline("text-generation")` with a history for each call, and the entries that moved each generated token."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TextGenerationPipeline

from ..bank.protocol import Bank
from ..history.attachment import Attachment
from ..history.explanation import as_values
from ..models.causal import LLEForCausalLM


class LLETextGenerationPipeline(TextGenerationPipeline):
    """transformers' pipeline, with `history` and `return_history`; `import modeling_lle` makes `pipeline()` use it.

    `history` is the bank to recall from, as an Attachment or alone; None: the one that `attach_history` set.
    With `return_history=True`, each record has under `history` an item for each new token, as `as_values` makes it of
    an `Explanation`: its text, its probability by the base and with history, and the `history_top` entries of the
    largest effects, with the text around them. The effects add up to the change.

    Example:
        >>> generate = pipeline("text-generation", model=folder)
        >>> record = generate(text, max_new_tokens=5, return_history=True)[0]
        >>> record["history"][0]["causes"][0]["before"]
    """

    def _sanitize_parameters(  # type: ignore[override]
        self,
        history: Attachment | Bank | None = None,
        return_history: bool | None = None,
        history_top: int | None = None,
        **parameters: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if (return_history or history is not None) and not hasattr(self.model, "explain"):
            raise TypeError(f"a history needs an LLE model; this is a {type(self.model).__name__}")
        before, during, after = super()._sanitize_parameters(**parameters)
        if return_history is not None:
            after["return_history"] = return_history
        if history_top is not None:
            after["history_top"] = history_top
        if history is not None:
            during["history"] = after["history"] = Attachment.of(history)
        return before, during, after

    def _forward(self, model_inputs: dict[str, Any], **options: Any) -> Any:  # type: ignore[override]
        """As transformers', but for one text by the model's `stream`, which makes the same tokens in less time."""
        ids, mask = model_inputs["input_ids"], model_inputs.get("attention_mask")
        prepared = self._prepare_generate_kwargs(dict(options))
        model: Any = self.model
        if options.get("prefix_length") or not hasattr(model, "stream") or not model.can_stream(ids, mask, **prepared):
            return super()._forward(model_inputs, **options)
        new = torch.tensor([list(model.stream(ids, **prepared))], dtype=ids.dtype, device=ids.device)
        sequence = torch.cat([ids, new], dim=1)[None]
        return {"generated_sequence": sequence, "input_ids": ids, "prompt_text": model_inputs["prompt_text"]}

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: dict[str, Any],
        *args: Any,
        return_history: bool = False,
        history_top: int = 3,
        history: Attachment | None = None,
        **rest: Any,
    ) -> list[dict[str, Any]]:
        """As transformers', with the history of each record."""
        records = super().postprocess(model_outputs, *args, **rest)
        if return_history:
            model: Any = self.model
            tokenizer: Any = self.tokenizer
            given = model_outputs["input_ids"]
            for record, sequence in zip(records, model_outputs["generated_sequence"][0], strict=True):
                prompt = 0 if given is None else given.shape[-1]
                padding = int((sequence[:prompt] != tokenizer.pad_token_id).long().argmax()) if prompt else 0
                text = sequence[padding:]
                record["history"] = generated_history(
                    model, tokenizer, text, len(sequence) - prompt, history, history_top
                )
        return records


def generated_history(
    model: LLEForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    text: Tensor,
    generated: int,
    history: Attachment | None = None,
    top: int = 3,
) -> list[dict[str, Any]]:
    """An item for each of the last `generated` tokens of a text (T,) int64, which the model made after the others."""
    explanations = model.explain(text, top, history, generated)
    return as_values([item for item in explanations if item.position >= len(text) - generated], tokenizer)
