"""Importing the package is lazy, and makes the Auto classes know LLE in whatever order things are imported."""

import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from transformers.models.auto import configuration_auto, modeling_auto, tokenization_auto

import modeling_lle
from modeling_lle import (
    LLEConfig,
    LLEForCausalLM,
    LLEForSeq2SeqLM,
    LLEModel,
    LLESeq2SeqConfig,
    LLESeq2SeqModel,
    LLETokenizer,
)
from tests.factories.language_models import make_language_model
from tests.factories.pairs import WORD_PAIRS_TOKENIZER
from tests.factories.translators import make_word_translator

LAZY = """
import sys
import modeling_lle
heavy = {"torch", "transformers", "numpy", "tokenizers", "datasets", "modeling_lle.models.causal"} & set(sys.modules)
assert not heavy, heavy
import transformers
assert not {"transformers.modeling_utils", "modeling_lle.models.causal"} & set(sys.modules)
"""
AFTER_TRANSFORMERS = """
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
import modeling_lle
"""
USE = """
import sys
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
config = AutoConfig.from_pretrained(sys.argv[1])
found = [config, AutoModel.from_pretrained(sys.argv[1]), AutoModelForCausalLM.from_pretrained(sys.argv[1])]
found += [AutoTokenizer.from_pretrained(sys.argv[1])]
found += [AutoModel.from_config(config), AutoModelForCausalLM.from_config(config)]
names = ["LLEConfig", "LLEModel", "LLEForCausalLM", "LLETokenizer", "LLEModel", "LLEForCausalLM"]
assert [type(value) for value in found] == [getattr(modeling_lle, name) for name in names], found
assert type(AutoConfig.for_model("lle")) is modeling_lle.LLEConfig
from transformers.models.auto import modeling_auto
assert "LLEForCausalLM" in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()  # the Trainer's label smoothing
assert "LLEModel" in modeling_auto.MODEL_MAPPING_NAMES.values()
from transformers import pipeline
assert type(pipeline("text-generation", sys.argv[1])) is modeling_lle.LLETextGenerationPipeline
assert "modeling_lle.pipelines.translation" not in sys.modules
translate = pipeline("translation", sys.argv[2])
assert type(translate) is modeling_lle.LLETranslationPipeline
assert type(translate.model) is modeling_lle.LLEForSeq2SeqLM
assert list(translate("the cat")[0]) == ["translation_text"]
import transformers
assert transformers.LLEForCausalLM is modeling_lle.LLEForCausalLM
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tokenizer = LLETokenizer.train(["the cat sat"], kind="word")
    make_language_model(vocab_size=len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    make_word_translator().save_pretrained(path / "translator")
    WORD_PAIRS_TOKENIZER.save_pretrained(path / "translator")
    return path


@pytest.mark.parametrize("imports", [LAZY, AFTER_TRANSFORMERS], ids=["before", "after"])
def test_the_auto_classes_know_lle(imports: str, folder: Path) -> None:
    code = "import gc; gc.disable()\n" + imports + USE  # a tenth faster
    command = [sys.executable, "-W", "error::DeprecationWarning:modeling_lle", "-c", code, str(folder)]
    command.append(str(folder / "translator"))
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr


def test_the_tables_hold_the_names() -> None:
    assert configuration_auto.CONFIG_MAPPING["lle"] is LLEConfig
    assert modeling_auto.MODEL_MAPPING_NAMES["lle"] == "LLEModel"
    assert modeling_auto.MODEL_MAPPING_NAMES["lle_seq2seq"] == "LLESeq2SeqModel"
    assert modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["lle"] == "LLEForCausalLM"
    assert modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES["lle_seq2seq"] == "LLEForSeq2SeqLM"
    assert modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING[LLEConfig] is LLEForCausalLM
    assert modeling_auto.MODEL_MAPPING[LLEConfig] is LLEModel
    assert modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[LLESeq2SeqConfig] is LLEForSeq2SeqLM
    assert modeling_auto.MODEL_MAPPING[LLESeq2SeqConfig] is LLESeq2SeqModel
    assert tokenization_auto.TOKENIZER_MAPPING[LLEConfig] is not None
    assert tokenization_auto.TOKENIZER_MAPPING[LLESeq2SeqConfig] is not None


def test_a_model_type_either_goes_on_with_a_text_or_makes_another_of_it() -> None:
    """As lm-evaluation-harness looks it up, which asks the second table first."""
    assert "lle" not in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    assert "lle_seq2seq" not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert LLEConfig not in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    assert LLESeq2SeqConfig not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING


def test_the_classes_are_attributes_of_transformers() -> None:
    """`transformers serve` takes them from there."""
    for name in ("LLEConfig", "LLESeq2SeqConfig", "LLEModel", "LLEForCausalLM", "LLEForSeq2SeqLM", "LLETokenizer"):
        assert getattr(transformers, name) is getattr(modeling_lle, name)


def test_the_package_lists_what_it_has() -> None:
    assert set(modeling_lle.__all__) <= set(dir(modeling_lle))
    for name in modeling_lle.__all__:
        assert getattr(modeling_lle, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'LLEForWeather'"):
        modeling_lle.LLEForWeather  # noqa: B018


def test_registering_again_changes_nothing() -> None:
    modeling_lle.register(modeling_lle)
    assert modeling_auto.MODEL_MAPPING[LLEConfig] is LLEModel
