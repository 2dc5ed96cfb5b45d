"""The model class `lle` of lm-evaluation-harness: it carries state and stream through a text, and can attach a bank.

    python -m modeling_lle.evaluation.lm_eval run --model lle --model_args pretrained=FOLDER,bank=BANK --tasks NAMES

This is the harness's own command, `lm_eval`, which does not know the class by itself.

Notable: a text of any length is read once, segment by segment, and every token of it is scored once, after all that
came before; a context that several continuations share is read once. Batches are padded after the ends of the texts,
where nothing is scored. Shapes: B batch, T time, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ModuleNotFoundError as error:
    raise ImportError('the harness needs lm-eval: pip install "modeling_lle[eval]"') from error

from ..bank.bank import HistoryBank
from ..configuration import LLEConfig
from ..data.streams import IGNORED
from ..history.cache import LLECache
from ..history.prediction import block_size
from ..models.causal import LLEForCausalLM

UNLIMITED = (1 << 31) - 1  # tokens of a context; a recurrent model has no longest one
Row = tuple[list[int], list[int]]  # what comes before, at least one token, and the tokens that are scored
Scored = tuple[float, bool]  # log P of the tokens, nats, and whether each is the most probable one


@register_model("lle")
class HarnessModel(HFLM):
    """A language model of this package, or one of transformers that can be its backbone.

    Args:
        pretrained: Folder, name on the Hub, or a loaded `LLEForCausalLM`.
        bank: Folder of a bank to recall from; None: none.
        namespaces: Namespaces of the bank to recall from, a list or joined by "+"; None: all.
        use_history: Whether the history takes part; None: as the model's configuration says.
        device: "cpu" or "cuda"; None: CUDA if there is a device.
        batch_size: Texts that are read at once.
        options: Those of `HFLM`, the class `hf` of the harness. `max_length` bounds the tokens before a continuation
            and those that a generation begins with; by default there is no bound.

    Raises:
        TypeError: The model is no language model of this package.
        ValueError: `batch_size` is "auto", or `namespaces` are given without a bank.
        BankError: The bank is of another model, or has no such namespace.
    """

    def __init__(
        self,
        pretrained: str | LLEForCausalLM,
        bank: str | None = None,
        namespaces: str | Sequence[str] | None = None,
        use_history: bool | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        **options: Any,
    ) -> None:
        if not str(batch_size).isdigit():
            raise ValueError(f"batch_size={batch_size}: texts are read in segments, so any number fits; give one")
        if namespaces is not None and bank is None:
            raise ValueError(f"namespaces={namespaces}, but there is no bank that holds them: give bank=FOLDER")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if not isinstance(pretrained, str):
            _check_class(pretrained)
        super().__init__(pretrained, device=device, batch_size=batch_size, **{"backend": "causal", **options})
        _check_class(self.model)
        if use_history is not None:
            self.model.config.use_history = use_history
        if bank is not None:
            chosen = namespaces.split("+") if isinstance(namespaces, str) else namespaces
            self.model.attach_history(HistoryBank.from_pretrained(bank), chosen, self.tokenizer)

    def _create_model(self, pretrained: str, *args: Any, **options: Any) -> None:
        """As in `HFLM`; a model of transformers becomes a backbone."""
        if self.config.model_type == LLEConfig.model_type:
            super()._create_model(pretrained, *args, **options)
        else:
            chosen = {name: options[name] for name in ("revision", "dtype", "subfolder") if options.get(name)}
            self._model = LLEForCausalLM.from_backbone(pretrained, **chosen).to(self.device)

    @property
    def max_length(self) -> int:
        """Most tokens of a context."""
        return self._max_length or UNLIMITED

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log P of whole texts, nats: each is read in segments that go on from the cache."""
        texts = [request.args[0] for request in requests]
        rows: list[Row] = [([self.prefix_token_id], self.tok_encode(text)) for text in texts]
        totals = [total for total, _ in self._score(rows, disable_tqdm)]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Scored]:
        """log P of continuations after their contexts, and whether they are what greedy decoding gives."""
        rows: list[Row] = []
        for (context, continuation), before, after in requests:
            if not after:
                raise ValueError(f"{continuation!r:.80} after {context[-40:]!r} has no token of its own to be scored")
            rows.append((before[-max(1, self.max_length + 1 - len(after)) :], after))
        scored = self._score(rows, disable_tqdm)
        for (texts, _, _), result in zip(requests, scored, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, result)
        return scored

    def _score(self, rows: list[Row], quiet: bool) -> list[Scored]:
        """What `_read` gives for each row, in their order."""
        found: dict[int, Scored] = {}
        with tqdm(total=len(rows), desc="Reading texts", disable=quiet or self.rank != 0) as bar:
            for places, shared in _batches(rows, int(self.batch_size)):
                own, cache = [rows[place] for place in places], None
                if shared:
                    cache = self._read_context(own[0][0][:-1], len(own))
                    own = [(before[-1:], after) for before, after in own]
                found |= dict(zip(places, self._read(own, cache), strict=True))
                bar.update(len(places))
        return [found[place] for place in range(len(rows))]

    @torch.no_grad()
    def _read_context(self, context: list[int], rows: int) -> LLECache:
        """The cache after a context, for so many texts that go on with it."""
        ids, cache = torch.tensor([context], device=self.device), None
        for part in ids.split(block_size(1, self.model.config.vocab_size), dim=1):
            cache = self.model(part, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
        assert cache is not None
        cache.batch_repeat_interleave(rows)
        return cache

    @torch.no_grad()
    def _read(self, rows: list[Row], cache: LLECache | None) -> list[Scored]:
        """Reads texts as one batch, segment by segment, from where `cache` is."""
        inputs, targets = _padded(rows, self.device)
        size = block_size(len(rows), self.model.config.vocab_size)
        totals, greedy = torch.zeros(len(rows), device=self.device), torch.ones(len(rows), dtype=torch.bool)
        for ids, due in zip(inputs.split(size, dim=1), targets.split(size, dim=1), strict=True):
            scored = (due != IGNORED).any(0).nonzero()
            kept = due.shape[1] - int(scored[0]) if len(scored) else 1
            output = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=kept)
            cache = output.past_key_values
            log_probs = output.logits[:, -kept:].float().log_softmax(-1)  # with history they are log P already
            own = due[:, -kept:]
            counts, chosen = own != IGNORED, own.clamp(min=0)
            totals += (log_probs.gather(-1, chosen[..., None])[..., 0] * counts).sum(1)
            greedy &= ((log_probs.argmax(-1) == chosen) | ~counts).all(1).cpu()
        return list(zip(totals.tolist(), greedy.tolist(), strict=True))


def _check_class(model: object) -> None:
    if not hasattr(model, "score"):
        raise TypeError(f"this is a {type(model).__name__}: the model lle of the harness takes an LLEForCausalLM")


def _padded(rows: list[Row], device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T) int64 of texts, padded after their ends; targets are -100 where nothing is scored."""
    length = max(len(before) + len(after) for before, after in rows) - 1
    inputs = torch.zeros(len(rows), max(1, length), dtype=torch.long)
    targets = torch.full_like(inputs, IGNORED)
    for row, (before, after) in enumerate(rows):
        text = [*before, *after]
        inputs[row, : len(text) - 1] = torch.tensor(text[:-1], dtype=torch.long)
        targets[row, len(before) - 1 : len(text) - 1] = torch.tensor(after, dtype=torch.long)
    return inputs.to(device), targets.to(device)


def _batches(rows: list[Row], size: int) -> Iterator[tuple[list[int], bool]]:
    """Yields the places of rows that are read as one batch, and whether they share a context.

    Those that share one, of at least two tokens, are a batch; the others are put together by length.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, (before, _) in enumerate(rows):
        groups.setdefault(tuple(before), []).append(place)
    shared = {key: places for key, places in groups.items() if len(key) > 1 and len(places) > 1}
    yield from ((places, True) for places in shared.values())
    alone = [place for key, places in groups.items() if key not in shared for place in places]
    alone.sort(key=lambda place: -sum(map(len, rows[place])))
    yield from ((alone[begin : begin + size], False) for begin in range(0, len(alone), size))


if __name__ == "__main__":
    cli_evaluate()
