"""The tokens of one text as they are generated, without what transformers' `generate` does around each step.

Notable: options, processors of the scores and draws are those of `generate`, so the same tokens come out, also of a
sample with the same seed. A step runs embedding, stack and output layer one after another where nothing is wrapped or
hooked around them; else, and with a bank or the test-time update, it calls the model.
Shapes: B batch, T time, D width, V vocabulary.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.generation import (
    GenerationConfig,
    GenerationMode,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..backbone.single_step import SingleStep, can_step, is_hooked
from ..bank.protocol import Bank
from ..configuration import LLEConfig
from ..history.attachment import Attachment
from ..history.bank_matches import BankMatchSource
from ..history.cache import LLECache
from ..history.prediction import Prediction, collect
from ..history.source import MatchSource, StreamSource
from ..kernels.available import fused
from ..kernels.linear import apply_linear
from .backbone import LLEModel

# Options of generate that the loop over the tokens of one text does not have, and their values when they are off.
REFUSED: dict[str, tuple[Any, ...]] = {
    "num_return_sequences": (None, 1),
    "guidance_scale": (None, 1),
    "stop_strings": (None,),
    "max_time": (None,),
    "watermarking_config": (None,),
    "token_healing": (None, False),
    "return_dict_in_generate": (None, False),
    "use_cache": (None, True),
}
OF_FORWARD = ("past_key_values", "use_history", "history")  # options that go to the model
BLIND = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)  # processors that do not look at the text


class Streamed(Protocol):
    """A language model, as far as a step of it goes: a backbone and an output layer."""

    training: bool
    model: LLEModel
    lm_head: nn.Module
    config: LLEConfig

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `LLEForCausalLM.forward`."""
        ...

    def predictions(
        self, states: Tensor, entries: Tensor | None, mask: None, cache: LLECache, attachment: None
    ) -> Iterator[Prediction]:
        """See `LLEForCausalLM.predictions`."""
        ...

    def record(self, states: Tensor, entries: Tensor | None, mask: None, cache: LLECache) -> None:
        """See `LLEForCausalLM.record`."""
        ...

    def step(self, states: Tensor, entries: Tensor | None, cache: LLECache, attachment: None) -> Tensor | None:
        """See `step`."""
        ...

    def recalled_from(self, history: Attachment | Bank | None, use_history: bool | None) -> Attachment | None:
        """See `LLEPreTrainedModel.recalled_from`."""
        ...


def step(
    model: Streamed,
    states: Tensor,
    entries: Tensor | None,
    cache: LLECache | None,
    attachment: Attachment | None,
) -> Tensor | None:
    """Log P (B, 1, V) float32 after a single position, if a kernel can make it of the stream and the exact matches.

    Args:
        model: The model.
        states: (B, T, D) floating, the backbone's states of the segment.
        entries: (B, T) int64, as `LLEForCausalLM.predictions` takes them.
        cache: The cache, whose stream and matches take the position in.
        attachment: The bank to recall from, or None.

    Returns:
        None, and nothing is changed, if it must go block by block: a longer segment, a bank, gradients, no numba.
    """
    if cache is None or cache.stream is None or attachment is not None or states.shape[1] != 1 or not fused(states):
        return None
    logits = apply_linear(model.lm_head, states)
    if logits.requires_grad:
        return None
    if cache.last is not None:
        last = BankMatchSource(cache.last, None, model.config.bank_matches)
        last.read(entries, None, states.shape[:2], states.device)
    matches = None if cache.matches is None else MatchSource(cache.matches, model.config.matches)
    return StreamSource(cache.stream, model.config.stream).step(states, entries, logits, matches)


def refusal(config: GenerationConfig) -> str | None:
    """Returns the option of a prepared generation configuration that a stream of tokens cannot have, or None."""
    for name, off in REFUSED.items():
        value = getattr(config, name, None)
        if value not in off:
            return f"{name}={value!r}"
    mode = config.get_generation_mode()
    return None if mode in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE) else str(mode.value)


def one_text(input_ids: Tensor | Sequence[int]) -> Tensor:
    """Returns the tokens of a prompt as (1, T) int64; raises a ValueError unless it is one text that is not empty."""
    tokens = torch.as_tensor(input_ids, dtype=torch.long)
    if tokens.dim() > 2 or tokens.dim() < 1 or (tokens.dim() == 2 and len(tokens) != 1):
        raise ValueError(
            f"stream makes one text, of tokens (T,) or (1, T), got {tuple(tokens.shape)}: generate() takes batches"
        )
    if tokens.shape[-1] == 0:
        raise ValueError("the prompt holds no token: begin it with the tokenizer's bos_token")
    return tokens.view(1, -1)


class TopP(LogitsProcessor):
    """transformers' `TopPLogitsWarper`, which sorts only the tokens that others have left."""

    def __init__(self, given: TopPLogitsWarper) -> None:
        self.given = given

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Returns the scores (1, V), -inf where a token is ruled out."""
        left = (scores[0] > -torch.inf).nonzero()[:, 0]
        if 2 * len(left) > scores.shape[1]:
            return self.given(input_ids, scores)
        processed = torch.full_like(scores, -torch.inf)
        processed[:, left] = self.given(input_ids, scores[:, left])
        return processed


class Choice:
    """Chooses the next token of a text, as `generate` does.

    Args:
        config: The prepared generation configuration.
        processors: Its processors of the scores.
        generator: Of the draws; None: torch's own.
    """

    def __init__(
        self, config: GenerationConfig, processors: LogitsProcessorList, generator: torch.Generator | None
    ) -> None:
        self.sampled, self.generator = bool(config.do_sample), generator
        self.processors = [TopP(own) if type(own) is TopPLogitsWarper else own for own in processors]
        self.reads_text = any(type(own) not in BLIND for own in processors)
        self.is_greedy = not (self.sampled or self.processors)  # takes the likeliest token, whatever the text

    def again(self, generator: torch.Generator | None) -> "Choice":
        """The same choice, with draws of its own; for any text, unless it `reads_text`."""
        own = copy.copy(self)
        own.generator = generator
        return own

    def __call__(self, text: Tensor, logits: Tensor) -> int:
        """Returns the token after a text (1, T) int64, given the logits (1, V); they may be overwritten."""
        scores = logits.float()
        for processor in self.processors:
            scores = processor(text, scores)
        if not self.sampled:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self.generator))


class Reader:
    """Reads a text and the tokens that are chosen after it, one at a time.

    Args:
        model: The model.
        text: (1, T) int64, the text so far; of what the cache has read, nothing is read again.
        choose: Chooses each token.
        past_key_values, use_history, history: As in `LLEForCausalLM.forward`. After each token, the cache is what
            `generate` would leave: the token is not read yet.
    """

    def __init__(
        self,
        model: Streamed,
        text: Tensor,
        choose: Choice,
        past_key_values: LLECache | None = None,
        use_history: bool | None = None,
        history: Attachment | Bank | None = None,
    ) -> None:
        self.model, self.text, self.choose, self.cache = model, text, choose, past_key_values
        self.use_history, self.history = use_history, history
        self.last: Tensor | None = None  # (1, 1) int64, chosen and not read
        self._steps: Steps | None = None

    @torch.no_grad()
    def next_token(self) -> int:
        """Reads what is not read yet, and chooses the next token."""
        if self._steps is None or self.cache is None or self.last is None:
            logits = self._read_text()
        else:
            logits = self._steps.read(self.last, self.cache)
        token = self.choose(self.text, logits)
        self.last = torch.tensor([[token]], device=self.text.device)
        if self.choose.reads_text:
            self.text = torch.cat([self.text, self.last], dim=1)
        assert self.cache is not None
        self.cache.unread = self.last[0]
        return token

    def _read_text(self) -> Tensor:
        """Reads the text that the cache has not read; returns the logits (1, V)."""
        ids = self.text if self.cache is None else self.text[:, self.cache.seen_tokens :]
        options = {"use_history": self.use_history, "history": self.history, "logits_to_keep": 1}
        output = self.model(ids, past_key_values=self.cache, use_cache=True, **options)
        self.cache = output.past_key_values
        self._steps = Steps(self.model, self.use_history, self.history)
        return output.logits[:, -1]


class Steps:
    """Reads tokens that were generated, one of each row at a time.

    Args:
        model: The model, in which nothing is wrapped or hooked later on.
        use_history, history: As in `LLEForCausalLM.forward`.
    """

    def __init__(self, model: Streamed, use_history: bool | None, history: Attachment | Bank | None) -> None:
        self.model, self.use_history, self.history = model, use_history, history
        self._is_direct = model.recalled_from(history, use_history) is None and _is_direct(model)
        self._single: SingleStep | None = None

    def read(self, ids: Tensor, cache: LLECache) -> Tensor:
        """Logits (B, V) after a token of each row (B, 1) int64, which the cache takes in."""
        model = self.model
        if not self._is_direct or cache.overlay is not None:
            options = {"use_history": self.use_history, "history": self.history, "logits_to_keep": 1}
            logits: Tensor = model(ids, past_key_values=cache, use_cache=True, generated=1, **options).logits
            return logits[:, -1]
        states = self._advance(model.model.embed_tokens(ids), cache)
        cache.seen_tokens += 1
        cache.unread = None
        own = -1 - ids if cache.takes_tokens else None  # as `outcomes` of generating.py marks it
        entries = ids if model.config.stream.generated else own
        use_history = model.config.use_history if self.use_history is None else self.use_history
        if not use_history or cache.stream is None:
            model.record(states, entries, None, cache)
            return apply_linear(model.lm_head, states)[:, -1]
        stepped = model.step(states, entries, cache, None)
        if stepped is None:
            _, stepped, _ = collect(model.predictions(states, entries, None, cache, None), None, True, False)
            assert stepped is not None
        return stepped[:, -1]

    def _advance(self, embedded: Tensor, cache: LLECache) -> Tensor:
        """Moves the cache's state on by a token of each row, embedded as (B, 1, D); returns the states at them."""
        stack = self.model.model.stack
        if self._single is None and can_step(stack, embedded, cache.state):
            self._single = SingleStep(stack)
        single = self._single if len(embedded) == 1 else None
        states, cache.state = (single or stack)(embedded, cache.state)
        return states


def tokens_of(reader: Reader, number: int, ends: frozenset[int]) -> Iterator[int]:
    """Yields at most so many tokens, the last of them one of `ends` if one comes."""
    for _ in range(number):
        token = reader.next_token()
        yield token
        if token in ends:
            return


def _is_direct(model: Streamed) -> bool:
    """Whether embedding, stack and output layer, called one after another, are what `forward` does."""
    backbone = model.model
    if getattr(backbone, "backbone", None) is not None:  # of transformers
        return False
    modules: list[Any] = [model, backbone, backbone.embed_tokens]
    if model.training or type(backbone) is not LLEModel or type(backbone.embed_tokens) is not nn.Embedding:
        return False
    return not any(map(is_hooked, modules))
