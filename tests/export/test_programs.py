"""Programs of torch.export give what the model gives; whatever differs is refused."""

from pathlib import Path
from unittest import mock

import pytest
import torch

from modeling_lle.export import programs
from modeling_lle.export.errors import ExportError
from modeling_lle.export.programs import write_programs
from tests.factories.language_models import make_language_model
from tests.factories.translators import make_subword_translator


@pytest.mark.slow
@pytest.mark.parametrize("recurrence", ["lstm", "gru", "qrnn"])
def test_a_language_model_becomes_programs_of_texts_and_steps(recurrence: str, tmp_path: Path) -> None:
    files = write_programs(make_language_model(7, recurrence, "residual"), tmp_path)
    assert files == {"model": "programs/model.pt2", "step": "programs/step.pt2"}
    step = torch.export.load(tmp_path / files["step"])
    operators = {str(node.target) for node in step.graph.nodes if node.op == "call_function"}
    assert not [name for name in operators if "lle" in name]  # runs without this package


@pytest.mark.slow
@pytest.mark.parametrize("recurrence", ["lstm", "gru", "qrnn"])
def test_a_translator_becomes_programs_of_its_encoder_and_of_steps(recurrence: str, tmp_path: Path) -> None:
    files = write_programs(make_subword_translator(recurrence), tmp_path)
    assert files == {"encoder": "programs/encoder.pt2", "decoder_step": "programs/decoder_step.pt2"}


@pytest.mark.slow
def test_a_program_that_differs_is_refused(tmp_path: Path) -> None:
    other = mock.Mock(module=lambda: lambda *inputs: torch.zeros(3, 7, 11))
    with mock.patch.object(programs, "load", return_value=other), pytest.raises(ExportError, match="is not the model"):
        write_programs(make_language_model(0), tmp_path)
