"""What the LLE models share: how they are initialised, loaded and saved, and the bank that is attached to them.

Notable: a backbone that would be partly untrained is an error, as is a broken file; a bank is saved only when asked.
"""

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.utils import cached_file

from ..backbone.hub import restore_buffers
from ..backbone.recurrence import RENAMED, current_name, first_name, init_recurrent_weights
from ..bank.manifest import HISTORY_FOLDER, BankError
from ..bank.protocol import Bank, EntryKind, Outcome
from ..common.packages import raise_missing
from ..common.temporary import replacing_files
from ..configuration import LLEConfig
from ..history.attachment import Attachment
from ..history.training import HistoryLoss
from ..history.update_statistics import STATISTICS, read_statistics
from ..kernels.linear import is_packed
from ..shipping import ship

PARTIAL = ".lle-saving-"  # what the name of a folder begins with, in which a model's files are written
_OLD_NAMES = {re.escape(old): new for old, new in RENAMED.items()}  # as `key_mapping` of from_pretrained
_OF_THE_HUB = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")
_SHARD = re.compile(r"model(\.\w+)?-\d{5}-of-\d{5}\.safetensors")  # of the weights; transformers makes these names


def _hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of from_pretrained by which another file of the same repository is found, if there is one."""
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    found = {name: options[name] for name in names if options.get(name) is not None}
    return {**found, "_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}


def _kind_of(bank: Bank) -> tuple[str, bool]:
    """Fingerprint of a bank, and whether its outcomes are labels: banks of one kind fit the same models."""
    return bank.fingerprint, bank.labels is not None


class LLEPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation of the LLE models."""

    config: LLEConfig
    auto_class: ClassVar[str]  # that loads this class; transformers' own `_auto_class` would make it copy the code
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    @property
    def entry_kind(self) -> EntryKind[Any]:
        """How entries for this model are made; raises an ImportError where this package is not installed."""
        try:  # an absolute import: what only makes entries is not saved with the model
            from modeling_lle.entries.texts import TextEntries
        except ModuleNotFoundError as error:
            raise_missing(error)
        return TextEntries()

    @property
    def key_size(self) -> int:
        """Width of keys and queries."""
        return self.config.state_size

    def key_weights(self) -> list[tuple[str, Tensor]]:
        """Names and values of the weights that keys depend on; the names are those of the first version."""
        weights = self.base_model.state_dict()
        opaque = [name for name, weight in weights.items() if not isinstance(weight, Tensor) or weight.is_quantized]
        if opaque:
            raise ValueError(
                f"a bank cannot tell whose keys it holds by {opaque[0]}, which is quantised: attach it first, and "
                "quantise the model then"
            )
        return sorted((first_name(name), weight) for name, weight in weights.items())

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # generate lets forward make the LLECache

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -self.config.initializer_range, self.config.initializer_range)
        elif module is getattr(self, "lm_head", None):
            init.uniform_(module.weight, -self.config.initializer_range, self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, HistoryLoss):
            module.load()
        else:
            init_recurrent_weights(module)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *args: Any,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As in transformers, but a backbone that would be partly untrained is an error, as is a broken file."""
        name = pretrained_model_name_or_path
        kwargs |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
        kwargs["key_mapping"] = {**_OLD_NAMES, **(kwargs.get("key_mapping") or {})}
        try:
            loaded: Any = super().from_pretrained(name, *args, **kwargs)
        except SafetensorError as error:
            raise OSError(
                f"a weight file (.safetensors) of {name} is truncated or corrupted ({error}): "
                "download it again with force_download=True, or save the model again"
            ) from error
        model, info = loaded
        prefix = "" if model.base_model is model else f"{cls.base_model_prefix}."
        wrong = [f"{key} is missing" for key in info["missing_keys"] if key.startswith(prefix)]
        wrong += [f"{key} is {tuple(given)}, not {tuple(due)}" for key, given, due in info["mismatched_keys"]]
        if wrong and not ignore_mismatched_sizes:
            raise ValueError(
                f"the weights of {name} do not fit its config.json: {'; '.join(sorted(wrong))}. Save the model again, "
                "or pass ignore_mismatched_sizes=True to start these weights anew"
            )
        if model.base_model.config.wrapped is not None:
            restore_buffers(model.base_model.backbone)
        statistics = None if name is None else cached_file(name, STATISTICS, **_hub_options(kwargs))
        own, model.update_statistics_fault = read_statistics(statistics)
        model.update_statistics = None if own is None else {current_name(key): value for key, value in own.items()}
        return loaded if output_loading_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        *args: Any,
        save_history: bool = False,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Saves the model, and the code that loads it where this package is not installed.

        With `save_history`, a copy of the attached bank is kept in the folder `history`, from which
        `HistoryBank.from_pretrained` opens it. It holds the texts that the bank was made of. Nothing is written if
        another bank is there, or an older copy of this one that has been changed since.

        Args:
            save_directory: The folder.
            is_main_process: Whether this process writes what all processes of a training have in common.
            args: As in transformers.
            save_history: Whether to save the attached bank too.
            push_to_hub: Whether to upload the model, and the bank with `save_history`, afterwards.
            kwargs: As in transformers; with `push_to_hub` also `repo_id` and the options of `push_to_hub()`.
        """
        if save_history and self.history_bank is None:
            raise ValueError("save_history=True, but no bank is attached: call attach_history first")
        hub = {name: kwargs.pop(name) for name in _OF_THE_HUB if name in kwargs}
        shared = bool(kwargs.get("distributed_checkpoint")) or not is_main_process or os.path.isfile(save_directory)
        with contextlib.ExitStack() as stack:
            if save_history and self.history_bank is not None:  # checked and copied first, counts last
                stack.enter_context(self.history_bank.saving(os.path.join(save_directory, HISTORY_FOLDER)))
            folder = save_directory
            if not shared:
                folder = stack.enter_context(replacing_files(save_directory, PARTIAL, _SHARD))
            if is_main_process and not os.path.isfile(folder):
                os.makedirs(folder, exist_ok=True)
                also = [type(self.history_bank)] if save_history else []
                self.config.auto_map = ship(self._shipped(), Path(folder), also)
            super().save_pretrained(folder, is_main_process, *args, **kwargs)
            if self.backbone_tokenizer is not None and is_main_process:
                self.backbone_tokenizer.save_pretrained(folder)
            if self.update_statistics is not None:
                save_file(self.update_statistics, os.path.join(folder, STATISTICS), {"format": "pt"})
        if push_to_hub and is_main_process:
            repository = hub.pop("repo_id", Path(save_directory).name)
            self.push_to_hub(repository, **hub)
            if save_history and self.history_bank is not None:
                own = {name: hub[name] for name in ("token", "private", "revision") if name in hub}
                self.history_bank.push_to_hub(repository, **own)

    def _shipped(self) -> dict[str, type]:
        """The classes whose code is saved with the model, under the names of their Auto classes, the model's last."""
        return {"AutoConfig": type(self.config), "AutoModel": type(self.base_model), self.auto_class: type(self)}

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """As in transformers; an attached bank, whose keys another model made then, must be detached first."""
        size = self.config.vocab_size if new_num_tokens is None else new_num_tokens
        size = size if pad_to_multiple_of is None else -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size != self.config.vocab_size:
            if self.history_bank is not None:
                raise ValueError(
                    f"the attached bank belongs to the model with {self.config.vocab_size} types of tokens: call "
                    "detach_history() before resize_token_embeddings, and build it anew afterwards"
                )
            self.update_statistics = None  # they are those of the old output layer
        resized = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if self.config.wrapped is not None:
            backbone: Any = self.base_model.backbone
            self.config.wrapped.vocab_size = backbone.config.vocab_size = size
        return resized

    outcome: Outcome = "token"
    backbone_tokenizer: PreTrainedTokenizerBase | None = None  # of a backbone of the Hub, saved with the model
    update_statistics: dict[str, Tensor] | None = None  # statistics of training text for the test-time update
    update_statistics_fault: str | None = None  # why those that were saved cannot be used
    history: Attachment | None = None
    # For each kind of bank that fitted (`_kind_of`): the weights that it fitted, unless they may have changed since.
    _fitting: dict[tuple[str, bool], list[tuple[Tensor, int, int]] | None] | None = None

    @property
    def history_bank(self) -> Bank | None:
        """The bank that is attached by default."""
        return None if self.history is None else self.history.bank

    @property
    def history_namespaces(self) -> tuple[str, ...] | None:
        """The namespaces of it to recall from; None: all."""
        return None if self.history is None else self.history.namespaces

    def attach_history(
        self,
        bank: Bank,
        namespaces: Sequence[str] | str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Sets the bank that calls recall from by default, in evaluation mode, until `detach_history`.

        A call may recall from another one: `model(..., history=attachment)`.

        Args:
            bank: The bank.
            namespaces: The namespaces to recall from; None: all that there are at the time of the search.
            tokenizer: The tokenizer with which `bank.add` is to encode texts; a translation memory needs it.

        Raises:
            BankError: Another backbone encoded the bank, it has outcomes of another kind, or no such namespace.
        """
        own = None if namespaces is None else bank.check_namespaces(namespaces)
        bank.check_model(self)
        self._know_fitting(bank)
        if tokenizer is not None or bank.encoder is None:
            bank.encoder = (self, tokenizer)
        self.history = Attachment(bank, own, tokenizer or bank.encoder[1])

    def detach_history(self) -> None:
        """Ends `attach_history`."""
        self.history = None

    def recalled_from(self, history: "Attachment | Bank | None", use_history: bool | None) -> Attachment | None:
        """The attachment that takes part in a call, pinned to the newest state of its bank; None for none.

        Args:
            history: As in `forward`: an Attachment, a bank, or None for the default.
            use_history: As in `forward`; None: as the configuration says, but never in training mode.

        Raises:
            BankError: The bank was encoded by another backbone, or the weights have changed since.
        """
        attachment = Attachment.of(history, self.history)
        if use_history is None:
            use_history = self.config.use_history and not self.training
        if attachment is None or not use_history:
            return None
        self.check_history(attachment.bank)
        return attachment.pinned()

    def train(self, mode: bool = True) -> Any:
        """As in torch; what trains is tested anew before it recalls from a bank."""
        if mode and self._fitting:
            self._fitting = dict.fromkeys(self._fitting)
        return super().train(mode)

    def check_history(self, bank: Bank) -> None:
        """Raises a BankError unless this model, with the weights that it has now, made the keys of a bank.

        A fingerprint reads every weight, so it is taken once for a bank, and again after training mode, whose fused
        optimizers do not count, and where torch has counted a write to a weight. A write through `.data` in evaluation
        mode is not seen.
        """
        if torch.compiler.is_compiling():
            return
        before = self._fitting or {}
        was_fitting, known = _kind_of(bank) in before, before.get(_kind_of(bank))
        if known is not None and all(own._version == count and own.data_ptr() == at for own, count, at in known):
            return
        if was_fitting and any(is_packed(module) for module in self.modules()):
            return  # quantised since: it reads the keys of what it was
        try:
            bank.check_model(self)
        except BankError as error:
            if not was_fitting:
                raise
            raise BankError(
                "the weights have changed since the bank was attached, by training or loading, so that its keys are "
                "stale: build the bank again with this model, or call detach_history()"
            ) from error
        self._know_fitting(bank)

    def _know_fitting(self, bank: Bank) -> None:
        """Remembers the weights as those that a bank fits, unless they are being trained."""
        counted = (own for own in self.parameters() if not own.is_meta and not own.is_inference())
        now: list[tuple[Tensor, int, int]] = [(own, own._version, own.data_ptr()) for own in counted]
        self._fitting = {**(self._fitting or {}), _kind_of(bank): None if self.training else now}
