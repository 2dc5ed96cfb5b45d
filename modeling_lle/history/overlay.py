"""The overlay: what gradient steps on the stream's own loss have changed, for each row of a batch, while it is read.

As soon as the outcomes of `every` predictions of a row are known, it takes one step down their summed nats:

    velocity  v <- momentum * v + g / rms(g) ** preconditioning
    change    c <- (1 - decay) ** every * c - rate * v

with g the gradient and rms(g) its root mean square over training text: preconditioning 0 is plain gradient descent, 1
the rule of dynamic evaluation (Krause et al. 2018, arXiv:1709.07432, equations 5 and 6). The model itself never
changes: a row's changes are added to the weights for this row only, decay towards what was trained, and go with the
cache. Scopes: "head" is the matrix and bias of the output layer; "low-rank" is its bias, and a map of rank R on the
states before it; "all" is every weight, differentiated through the tokens of the step from the state before them.
Notable: a token that the model generated itself is read, but is no outcome that a step learns from, unless
`history.update.generated` asks for it; an output whose probability was negligible at all tokens of a step is left out
of it, and the decay is kept as one factor for each row, so that a step on the head touches some hundred rows of its
matrix.
Shapes: B batch, T time, D width, V vocabulary, E tokens of a step, R rank.
"""

import functools
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.func import functional_call

from ..backbone.recurrence import current_name
from ..backbone.state import OpaqueState, from_named_tensors, join, named_tensors, select
from ..bank.fingerprint import fingerprint, same_backbone
from ..common.temporary import replacing
from ..configuration_sections import UpdateConfig
from ..kernels.linear import apply_linear, linear
from .cache import LLECache
from .loss import IGNORED
from .updatable import Updatable, change_sizes, check_updatable, pull_back, summed_gradients
from .update_statistics import preconditioners

logger = logging.getLogger(__name__)

FORMAT, VERSION = "modeling_lle.overlay", 2
_DECAYED = "decayed"  # its name in the file
MARGIN = 1.0  # nats a token above those of a uniform guess: from there on, the changes have done harm
RATES = {"head": 2e-3, "low-rank": 2e-4, "all": 1e-2}  # where the configuration gives none
EVERY = {"head": 40, "low-rank": 20, "all": 20}
LARGEST = 1e4  # of what a step may change in a weight
LARGE_CHANGES = 1 << 30  # bytes of them that are stated before they are spent
NEGLIGIBLE = 1e-2  # an output that had less than this probability at every token of a step is left as it is
RENEWAL = 1e-3  # the decay that is kept apart from the changes is multiplied into them when it gets below this

# A gradient; or two matrices (E, I), (E, J) whose product over E is one; or that of some rows, and their numbers (I,).
Gradient = tuple[Tensor, Tensor | None, Tensor | None]


class Overlay:
    """The changes of each row, and the tokens that its next step is taken on; a part of `LLECache`.

    Args:
        model: The `LLEForCausalLM` that reads.
        rows: Rows of the batch, B.

    Attributes:
        changes: For each weight that is changed (B, ...) floating, the difference to what was trained, over `decayed`.
        decayed: (B,) float64, the factor of a row's changes.
        count: (B,) int64, predictions of the row since its last step.
        tokens: (B, E) int64, the tokens that they were made from.
        outcomes: (B, E) int64, the same tokens as the outcome of the one before, -100 for one that teaches nothing.
        kept: What the step needs of them: "states" (B, E, D) and "probabilities" (B, E, V) of the plain output layer
            with its changes; for the scope "all" the backbone's state before them.
    """

    def __init__(self, model: Updatable, rows: int) -> None:
        self.numbers: UpdateConfig = model.config.overlay
        self.rate = RATES[self.numbers.scope] if self.numbers.rate is None else self.numbers.rate
        self.every = EVERY[self.numbers.scope] if self.numbers.every is None else self.numbers.every
        check_updatable(model, self.numbers)
        self.scales = preconditioners(model, self.numbers)
        wide = torch.promote_types(model.dtype, torch.float32)  # small steps would be lost in bfloat16
        zeros = functools.partial(torch.zeros, dtype=wide, device=model.device)
        sizes = change_sizes(model, self.numbers)
        _tell_memory(sizes, rows * (2 if self.numbers.momentum else 1) * wide.itemsize)
        self.changes = {name: zeros(rows, *size) for name, size in sizes.items()}
        self.velocity = {n: torch.zeros_like(c) for n, c in self.changes.items()} if self.numbers.momentum else {}
        self.decayed = torch.ones(rows, dtype=torch.float64)
        self.count = torch.zeros(rows, dtype=torch.long)
        self.tokens = torch.zeros(rows, self.every, dtype=torch.long)
        self.outcomes = torch.zeros(rows, self.every, dtype=torch.long)
        self.kept: dict[str, Tensor] = {}
        if not self.replaces_backbone:
            size = (rows, self.every)
            self.kept["states"] = zeros(*size, model.config.hidden_size)
            self.kept["probabilities"] = zeros(*size, model.config.vocab_size)

    @property
    def replaces_backbone(self) -> bool:
        """Whether the backbone's own weights are changed as well."""
        return self.numbers.scope == "all"

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replaces every tensor by `change(tensor)`: reordering, repeating or selecting the rows."""
        for tensors in (self.changes, self.velocity, self.kept):
            for name, tensor in tensors.items():
                tensors[name] = change(tensor)
        for name in ("decayed", "count", "tokens", "outcomes"):
            setattr(self, name, change(getattr(self, name)))

    def states(
        self, model: Updatable, tokens: Tensor, outcomes: Tensor | None, mask: Tensor | None, cache: LLECache
    ) -> Iterator[tuple[slice, Tensor]]:
        """The backbone's states of a segment in parts, between which the rows take their steps.

        Each part must be read, and its predictions given to `remember`, before the next one is asked for.

        Args:
            model: The model.
            tokens: (B, T) int64.
            outcomes: (B, T) int64, the same, -100 for one that teaches nothing; None if none does.
            mask: (B, T) bool, False at padding, or None.
            cache: The cache, whose state moves on.

        Yields:
            The positions of a part, and its states (B, n, D).
        """
        if not self.replaces_backbone:
            whole = model.model(tokens, mask, past_key_values=cache, use_cache=False).last_hidden_state
        outcomes = torch.full_like(tokens, IGNORED) if outcomes is None else outcomes
        for part in self._parts(tokens.shape[1], mask):
            ids, own_mask = tokens[:, part], None if mask is None else mask[:, part]
            self._read(model, ids, outcomes[:, part], own_mask, cache.state)
            yield part, self._encode(model, ids, own_mask, cache) if self.replaces_backbone else whole[:, part]

    def _parts(self, length: int, mask: Tensor | None) -> Iterator[slice]:
        """Cuts a segment of T positions where a row takes a step; `mask` (B, T) bool is False at padding.

        Each part must be read before the next one is asked for.
        """
        start = 0
        while start < length:
            room = self.every - self.count % self.every
            if mask is None:
                size = int(room.min())
            else:
                read = mask[:, start:].cumsum(1).cpu()
                size = int((read <= room[:, None]).sum(1).min())
            yield slice(start, min(start + size, length))
            start += size

    def _read(
        self, model: Updatable, tokens: Tensor, outcomes: Tensor, mask: Tensor | None, state: OpaqueState
    ) -> None:
        """Takes in the tokens (B, T) of a part, and the steps whose last outcome is now known.

        Args:
            model: The model.
            tokens: (B, T) int64.
            outcomes: (B, T) int64, as in `states`.
            mask: (B, T) bool, False at padding.
            state: The backbone's state before the part.
        """
        tokens, outcomes = tokens.cpu(), outcomes.cpu()
        real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.cpu()
        for row in range(len(tokens)):
            own, taught = tokens[row, real[row]], outcomes[row, real[row]]
            if not len(own):
                continue
            count = int(self.count[row])
            if count == self.every:
                self._step(model, row, torch.cat([self.outcomes[row, 1:], taught[:1]]).to(model.device))
                self.count[row] = count = 0
            if count == 0 and self.replaces_backbone:
                self._keep_state(row, state)
            self.tokens[row, count : count + len(own)] = own
            self.outcomes[row, count : count + len(own)] = taught
            self.count[row] = count + len(own)

    def _keep_state(self, row: int, state: OpaqueState) -> None:
        """Keeps the backbone's state of a row, from which its next step differentiates; None begins a text."""
        if state is None:
            self.kept.clear()
            return
        for name, tensor in named_tensors(state, "state").items():
            self.kept.setdefault(name, torch.zeros_like(tensor))[row] = tensor[row]

    def _encode(self, model: Updatable, tokens: Tensor, mask: Tensor | None, cache: LLECache) -> Tensor:
        """States (B, T, D) of the tokens (B, T) by the changed backbone; the cache's state moves on."""
        rows, old = [], cache.state
        for row in range(len(tokens)):
            own = LLECache()
            own.state = select(old, slice(row, row + 1))
            weights = {n.removeprefix("model."): weight for n, weight in self._weights(model, row, "model.").items()}
            given = {"attention_mask": None if mask is None else mask[row : row + 1], "past_key_values": own}
            states = functional_call(model.model, weights, (tokens[row : row + 1],), {**given, "use_cache": False})
            rows.append((states.last_hidden_state, own.state))
        cache.state = join([state for _, state in rows])
        cache.seen_tokens += tokens.shape[1]
        return torch.cat([states for states, _ in rows])

    def _weights(self, model: Updatable, row: int, prefix: str = "") -> dict[str, Tensor]:
        """The changed weights of a row, for the scope "all": those whose names begin with `prefix`."""
        trained = {n: own.detach() for n, own in model.named_parameters() if n.startswith(prefix)}
        factor = float(self.decayed[row])
        return {n: torch.add(own, self.changes[n][row], alpha=factor).to(own.dtype) for n, own in trained.items()}

    def output(self, model: Updatable, states: Tensor) -> Tensor:
        """The logits (B, T, V) of states (B, T, D), by each row's own output layer."""
        head, changes = model.lm_head, self.changes
        if self.numbers.scope == "all":
            matrix = "model.embed_tokens.weight" if model.config.tie_word_embeddings else "lm_head.weight"
            logits = []
            for row, own in enumerate(states):
                weight, bias = (self._weights(model, row, name)[name] for name in (matrix, "lm_head.bias"))
                logits.append(linear(own, weight, bias))
            return torch.stack(logits)
        wide = states.to(changes["bias"].dtype)
        factor = self.decayed.to(wide)[:, None, None]
        if self.numbers.scope == "head":
            rows = zip(wide, changes["weight"], changes["bias"], strict=True)
            more = torch.stack([linear(own, w, b) for own, w, b in rows])
        else:
            moved = (wide @ self.scales["directions"]) @ changes["map"].transpose(1, 2) * factor
            states, more = states + moved.to(states.dtype), changes["bias"][:, None]
        return apply_linear(head, states) + more * factor

    def remember(self, states: Tensor, positions: slice, log_probs: Tensor, mask: Tensor | None) -> None:
        """Keeps what the next step needs of predictions of a part that was read.

        Args:
            states: (B, T, D), those of the part.
            positions: Which of its positions were predicted.
            log_probs: (B, n, V), the base's log probabilities there, with the changes.
            mask: (B, T) bool, False at padding.
        """
        if self.replaces_backbone:
            return
        for row in range(len(states)):
            real = torch.ones(states.shape[1], dtype=torch.bool) if mask is None else mask[row].cpu()
            first = int(self.count[row] - real.sum() + real[: positions.start].sum())
            own, place = real[positions], slice(first, first + int(real[positions].sum()))
            self.kept["states"][row, place] = states[row, positions].detach()[own]
            self.kept["probabilities"][row, place] = log_probs[row].detach()[own].exp()

    @torch.no_grad()
    def _step(self, model: Updatable, row: int, outcomes: Tensor) -> None:
        """One step of a row on its last E predictions, whose outcomes (E,) int64 are known; -100 teaches nothing."""
        if not bool((outcomes != IGNORED).any()):
            return
        with torch.autocast(model.device.type, enabled=False):
            self._descend(model, row, outcomes)

    def _descend(self, model: Updatable, row: int, outcomes: Tensor) -> None:
        if self.replaces_backbone:
            nats, gradients = self._differentiate(model, row, outcomes)
        else:
            nats, gradients = self._residuals(model, row, outcomes)
        largest = self.rate * max(_highest(left) * _highest(right) for left, right, _ in gradients.values())
        if not (nats <= math.log(model.config.vocab_size) + MARGIN and largest < LARGEST):  # nor if one is NaN
            self._undo(row, nats)
            return
        self._decay(row)
        rate = self.rate / float(self.decayed[row])
        for name, gradient in gradients.items():
            if self.velocity:
                velocity = self.velocity[name][row].mul_(self.numbers.momentum)
                _accumulate(velocity, gradient, 1.0)
                gradient = velocity, None, None
            _accumulate(self.changes[name][row], gradient, -rate)

    def _decay(self, row: int) -> None:
        """Takes back what the tokens of a step take back of a row's changes."""
        self.decayed[row] *= (1 - self.numbers.decay) ** self.every
        if self.decayed[row] < RENEWAL:
            for change in self.changes.values():
                change[row] *= float(self.decayed[row])
            self.decayed[row] = 1

    def _residuals(self, model: Updatable, row: int, outcomes: Tensor) -> tuple[float, dict[str, Gradient]]:
        """Nats a token and scaled gradients of the last E predictions, from their probabilities."""
        states, residual = self.kept["states"][row], self.kept["probabilities"][row]
        taught = outcomes != IGNORED
        if not bool(taught.all()):
            states, residual, outcomes = states[taught], residual[taught], outcomes[taught]
        place = torch.arange(len(outcomes), device=outcomes.device), outcomes
        nats = float(-residual[place].log().mean())
        residual[place] -= 1  # the slope of the nats in the logits
        scaled = residual * self.scales["residual"]
        bias = scaled.sum(0), None, None
        if self.numbers.scope == "head":
            rows = (residual.abs().amax(0) >= NEGLIGIBLE).nonzero()[:, 0]
            return nats, {"weight": (scaled[:, rows], states * self.scales["state"], rows), "bias": bias}
        error = pull_back(model.lm_head, states.to(model.dtype), residual) * self.scales["error"]
        return nats, {"map": (error, states @ self.scales["directions"], None), "bias": bias}

    def _differentiate(self, model: Updatable, row: int, outcomes: Tensor) -> tuple[float, dict[str, Gradient]]:
        """Nats a token and scaled gradients of every weight, through the last E tokens."""
        cache = LLECache()
        cache.state = select(from_named_tensors(self.kept, "state"), slice(row, row + 1))
        weights = {name: weight.requires_grad_() for name, weight in self._weights(model, row).items()}
        nats, gradients = summed_gradients(model, weights, self.tokens[row].to(model.device), outcomes, cache)
        scaled = {name: gradient.to(self.scales[name]) * self.scales[name] for name, gradient in gradients.items()}
        return nats / int((outcomes != IGNORED).sum()), {
            name: (gradient, None, None) for name, gradient in scaled.items()
        }

    def _undo(self, row: int, nats: float) -> None:
        for tensors in (self.changes, self.velocity):
            for tensor in tensors.values():
                tensor[row] = 0
        self.decayed[row] = 1
        logger.warning(
            "the test-time update made row %d worse than a guess (%.1f nats a token): its changes are undone and it "
            "begins anew; lower history.update.rate (now %g) or raise history.update.decay (now %g)",
            row,
            nats,
            self.rate,
            self.numbers.decay,
        )

    def save(self, path: str | Path, model: Updatable) -> None:
        """Writes the changes into a safetensors file, whole or not at all; no tokens that still wait for a step."""
        described = {"format": FORMAT, "version": str(VERSION), "scope": self.numbers.scope}
        described["fingerprint"] = fingerprint(model)
        tensors = {name: change.contiguous() for name, change in self.changes.items()}
        with replacing(path) as partial:
            save_file({**tensors, _DECAYED: self.decayed}, partial, described)

    @classmethod
    def load(cls, path: str | Path, model: Updatable) -> "Overlay":
        """Reads what `save` wrote; set it as the `overlay` of an `LLECache`.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It holds no overlay, is damaged, or belongs to another model or scope.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no overlay at {path}: write one with cache.overlay.save")
        try:
            with safe_open(path, framework="pt") as file:
                described, changes = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"the overlay {path} is damaged ({error}): save it again") from error
        if described.get("format") != FORMAT:
            raise ValueError(f"{path} holds no overlay: write one with cache.overlay.save")
        if int(described["version"]) > VERSION:
            raise ValueError(f"the overlay {path} is of a newer version: upgrade with `pip install -U modeling_lle`")
        scope = model.config.overlay.scope
        if described["scope"] != scope:
            raise ValueError(
                f"the overlay {path} has the scope {described['scope']!r}, history.update.scope is {scope!r}"
            )
        changes = {current_name(name): change for name, change in changes.items()}
        decayed = changes.pop(_DECAYED, None)  # version 1 has none
        given = {name: change.shape[1:] for name, change in changes.items()}
        if not same_backbone(described["fingerprint"], model) or given != change_sizes(model, model.config.overlay):
            raise ValueError(f"the overlay {path} was made by another model: load the model that read the text")
        overlay = cls(model, len(next(iter(changes.values()))))
        overlay.decayed = overlay.decayed if decayed is None else decayed
        overlay.changes = {name: change.to(overlay.changes[name]) for name, change in changes.items()}
        return overlay


def _tell_memory(sizes: dict[str, torch.Size], bytes_each: int) -> None:
    """Says how much memory the changes take, before it is spent, if it is much."""
    needed = bytes_each * sum(size.numel() for size in sizes.values())
    if needed > LARGE_CHANGES:
        logger.warning(
            "the changes of the test-time update take %.1f GB in this batch: read fewer rows together, or set "
            "history.update.scope to 'low-rank', which keeps a small map for each row",
            needed / 1e9,
        )


def _highest(matrix: Tensor | None) -> float:
    return 1.0 if matrix is None else float(matrix.abs().max())


def _accumulate(target: Tensor, gradient: Gradient, factor: float) -> None:
    """Adds `factor` times a gradient to `target`."""
    left, right, rows = gradient
    if right is None:
        target.add_(left, alpha=factor)
    elif rows is None:
        target.addmm_(left.T, right, alpha=factor)
    else:
        target.index_add_(0, rows, left.T @ right, alpha=factor)
