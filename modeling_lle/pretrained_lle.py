"""What the LLE models share: how they are initialised, loaded and saved, and the bank that is attached to them.

Notable: a backbone that would be partly untrained is an error, as is a broken file; a bank is saved only when asked.
"""

import contextlib
import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import cached_file

from .bank_lle import HISTORY_FOLDER, HistoryBank
from .configuration_lle import LLEConfig
from .overlay_lle import STATISTICS
from .recurrence_lle import RecurrentLayer, init_recurrent_weights
from .temporary_lle import replacing_files
from .training_history_lle import HistoryLoss

PARTIAL = ".lle-saving-"  # what the name of a folder begins with, in which a model's files are written
_SHARD = re.compile(r"model(\.\w+)?-\d{5}-of-\d{5}\.safetensors")  # of the weights; transformers makes these names


def _hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of from_pretrained by which another file of the same repository is found, if there is one."""
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    found = {name: options[name] for name in names if options.get(name) is not None}
    return {**found, "_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}


def _place(part: type) -> str:
    """Where `trust_remote_code` finds a class in a saved folder."""
    return f"{part.__module__.rpartition('.')[2]}.{part.__name__}"


def _is_shared(folder: str | os.PathLike[str], is_main_process: bool = True, *_: Any, **options: Any) -> bool:
    """Whether not this process alone writes a model's files into a folder, or these are read there as they come."""
    shared = options.get("push_to_hub") or options.get("distributed_checkpoint") or not is_main_process
    return bool(shared) or os.path.isfile(folder)


class LLEPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation of the LLE models."""

    config: LLEConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _can_record_outputs = {"hidden_states": RecurrentLayer}  # noqa: RUF012

    @property
    def key_size(self) -> int:
        """Width of keys and queries."""
        return self.config.state_size

    def key_weights(self) -> list[tuple[str, Tensor]]:
        """Names and values of the weights that keys depend on."""
        return sorted(self.base_model.state_dict().items())

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
        statistics = None if name is None else cached_file(name, STATISTICS, **_hub_options(kwargs))
        model.update_statistics = None if statistics is None else load_file(statistics)
        return loaded if output_loading_info else model

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, save_history: bool = False, **kwargs: Any
    ) -> None:
        """Saves the model, and the code that loads it where this package is not installed, as transformers does.

        With `save_history`, a copy of the attached bank is kept in the folder `history`, from which
        `HistoryBank.from_pretrained` opens it. It holds the texts that the bank was made of. Nothing is written if
        another bank is there, or an older copy of this one that has been changed since.
        """
        if save_history and self.history_bank is None:
            raise ValueError("save_history=True, but no bank is attached: call attach_history first")
        parts = {"AutoConfig": self.config, "AutoModel": self.base_model, str(self._auto_class): self}
        self.config.auto_map = {auto: _place(type(part)) for auto, part in parts.items()}
        with contextlib.ExitStack() as stack:
            if save_history and self.history_bank is not None:  # checked and copied first, counts last
                stack.enter_context(self.history_bank.saving(os.path.join(save_directory, HISTORY_FOLDER)))
            if kwargs.get("push_to_hub"):
                stack.close()  # what is pushed is the bank itself, nothing in the making
            folder = save_directory
            if not _is_shared(save_directory, *args, **kwargs):
                folder = stack.enter_context(replacing_files(save_directory, PARTIAL, _SHARD))
            super().save_pretrained(folder, *args, **kwargs)
            if self.update_statistics is not None:
                save_file(self.update_statistics, os.path.join(folder, STATISTICS), {"format": "pt"})

    bank_module = "encode"  # of modeling_lle.banks, that makes entries of texts
    predicts_labels = False  # whether outcomes are labels, not tokens
    update_statistics: dict[str, Tensor] | None = None  # what the rule of the test-time update knows of training text
    history_bank: HistoryBank | None = None
    history_namespaces: tuple[str, ...] | None = None

    def attach_history(
        self, bank: HistoryBank, namespaces: Sequence[str] | str | None = None, tokenizer: Any = None
    ) -> None:
        """Lets the model recall from a bank, in evaluation mode, until `detach_history`.

        Args:
            bank: The bank.
            namespaces: The namespaces to recall from; None: all that there are at the time of the search.
            tokenizer: The tokenizer with which `bank.add` is to encode texts.

        Raises:
            BankError: Another backbone encoded the bank, or it has no such namespace.
        """
        bank.check_model(self)
        self.history_namespaces = None if namespaces is None else bank.check_namespaces(namespaces)
        self.history_bank = bank
        if tokenizer is not None or bank.encoder is None:
            bank.encoder = (self, tokenizer)

    def detach_history(self) -> None:
        """Ends `attach_history`."""
        self.history_bank = self.history_namespaces = None
