"""What is asked of the one function that decides the precision."""

import pytest
import torch

from modeling_lle.common import precision as precision_module


def record_precisions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by each precision that is asked for, and computes in bfloat16 where that is."""
    seen: list[str] = []

    def resolve(wanted: str, device: torch.device) -> torch.dtype:
        seen.append(wanted)
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32

    monkeypatch.setattr(precision_module, "resolve_precision", resolve)
    return seen
