"""The saved folder is all that anybody needs: with the package, without it, and over the Hub's HTTP interface."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.dynamic_module_utils import get_imports

from modeling_lle import HistoryBank, LLEConfig, LLEForCausalLM, LLEForSequenceClassification, LLEModel, LLETokenizer
from modeling_lle.training.model_card import write_model_card
from tests.factories.hub_models import make_hub_model
from tests.factories.language_models import make_language_model
from tests.factories.pairs import WORD_PAIRS_TOKENIZER
from tests.factories.texts import WORD_TOKENIZER, make_texts
from tests.factories.translators import make_taught_word_translator
from tests.hub.hub_client import logits
from tests.hub.hub_stand_in import HubStandIn

CLIENT = Path(__file__).with_name("hub_client.py")
OF_CLASSIFIERS = {
    *("backbone_pooling.py", "history_label_calibration.py", "history_label_prediction.py", "history_label_rule.py"),
    *("kernels_labels_numba.py", "models_teaching.py"),
}
OF_TRANSLATORS = {"backbone_source_attention.py", "models_encoder_decoder.py"}
OF_BANKS = {f"bank_{name}.py" for name in ("bank", "base", "changes", "files", "index_files", "nearest", "seal")}
OF_BANKS |= {"bank_base_state.py", "bank_sketch.py", "bank_state.py", "bank_view.py", "kernels_nearest_numba.py"}
FOLDERS: dict[str, tuple[str, ...]] = {
    "backbone": (
        *("batched_stacks", "cells", "hub", "hub_cache", "hub_families", "protocol", "recurrence", "single_step"),
        "state",
    ),
    "bank": ("fingerprint", "found", "manifest", "places", "projection", "protocol", "segment", "suffixes"),
    "common": ("checks", "modes", "packages", "precision", "temporary"),
    "history": (
        *("attachment", "bank_matches", "cache", "calibration", "explanation", "loss", "matches", "overlay"),
        *("prediction", "rule", "source", "stream", "training", "updatable", "update_statistics"),
    ),
    "kernels": (
        *("available", "linear", "lstm", "lstm_numba", "matches_numba", "mixture_numba"),
        *("numba_tools", "products_numba", "recall_numba", "scan", "scan_numba", "softmax_numba"),
        "suffixes_numba",
    ),
    "models": (
        *("arguments", "backbone", "generating", "outputs", "penalties", "pretrained", "sources", "streaming"),
        *("targets", "wrapping"),
    ),
}
CODE = {f"{folder}_{name}.py" for folder, names in FOLDERS.items() for name in names}
CODE |= {f"configuration{part}_lle.py" for part in ("", "_fields", "_hub", "_sections", "_version_1")}
CODE |= {"modeling_lle.py", "shipping_lle.py", "tasks_lle.py", "tokenization.py"}
RESULTS = {
    "command": "lle evaluate runs/cat",
    "commit": "abc1234",
    "environment": {"cpu": "some", "cores": 2},
    "metrics": {"parameters": 10660, "base_test_ppl": 80.12345, "stream_test_ppl": 71.5},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer and card, as saved."""
    torch.manual_seed(0)
    tokenizer = LLETokenizer.train(["the cat sat on the mat\n"] * 9, vocab_size=280)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LLEConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, recurrence="qrnn", **ids)
    path = tmp_path_factory.mktemp("saved") / "cat"
    LLEForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    write_model_card(
        path,
        RESULTS,
        repo_id="someone/cat",
        dataset="someone/mats",
        languages=["en"],
        license="apache-2.0",
        recipe="model:\n  hidden_size: 16\n",
    )
    return path


@pytest.fixture(scope="session")
def bare_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that has torch, transformers and what they require, and nothing else."""
    site = tmp_path_factory.mktemp("site-packages")
    found: set[str] = set()
    waiting = ["torch", "transformers"]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        distribution = metadata.distribution(name)
        for line in distribution.requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    return site


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as hub:
        yield hub


def run_client(*arguments: object, home: Path, isolated: bool = False, **variables: str) -> Any:
    """Runs hub_client.py with a cache of its own under `home`; returns what it printed last."""
    environment = {**os.environ, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", **variables}
    flags = ["-I", "-S"] if isolated else []
    command = [sys.executable, *flags, str(CLIENT), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def access(hub: HubStandIn) -> dict[str, str]:
    """The variables that lead a client to the stand-in, and nowhere else."""
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": "hf_nothing",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }


def assert_near(given: list[list[float]], due: list[list[float]]) -> None:
    """Equal logits, but for the rounding of another kernel."""
    torch.testing.assert_close(torch.tensor(given), torch.tensor(due), rtol=1e-4, atol=1e-4)


def test_folder_holds_what_loading_needs_and_nothing_else(folder: Path) -> None:
    data = {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    assert {path.name for path in folder.iterdir()} == CODE | data | {"tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize("name", sorted(CODE))
def test_code_requires_only_what_transformers_brings(folder: Path, name: str) -> None:
    """Transformers demands of everyone what a file imports outside `try`, even inside a function."""
    brought = {"filelock", "huggingface_hub", "numpy", "safetensors", "tokenizers", "torch", "transformers"}
    assert set(get_imports(folder / name)) - set(sys.stdlib_module_names) <= brought


def test_loads_without_trust_where_the_package_is(folder: Path) -> None:
    assert type(AutoConfig.from_pretrained(folder)) is LLEConfig
    assert type(AutoModel.from_pretrained(folder)) is LLEModel
    assert type(AutoModelForCausalLM.from_pretrained(folder)) is LLEForCausalLM
    assert type(AutoTokenizer.from_pretrained(folder)) is LLETokenizer


def test_folders_name_the_classes_that_they_hold(folder: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    classifier = LLEForSequenceClassification(model.config)
    for saved, head in ((model, set()), (classifier, {"AutoModelForSequenceClassification"})):
        saved.save_pretrained(tmp_path / "copy")
        found = json.loads((tmp_path / "copy" / "config.json").read_text())["auto_map"]
        assert set(found) == {"AutoConfig", "AutoModel"} | head
        assert all((tmp_path / "copy" / f"{place.partition('.')[0]}.py").exists() for place in found.values())
    assert {path.name for path in (tmp_path / "copy").iterdir()} >= OF_CLASSIFIERS


def test_loads_with_trust_in_a_fresh_environment(folder: Path, bare_site: Path, tmp_path: Path) -> None:
    copy, translator = tmp_path / "copy", tmp_path / "translator"
    make_taught_word_translator().save_pretrained(translator, save_history=True)
    WORD_PAIRS_TOKENIZER.save_pretrained(translator)
    assert {path.name for path in translator.iterdir()} >= OF_TRANSLATORS
    banked = make_language_model()
    banked.attach_history(HistoryBank.build(banked, WORD_TOKENIZER, make_texts(6, 8)))
    banked.save_pretrained(tmp_path / "banked", save_history=True)
    assert {path.name for path in (tmp_path / "banked").iterdir()} >= OF_BANKS
    wrapped = tmp_path / "wrapped"
    make_hub_model("falcon_h1").save_pretrained(wrapped / "hub")
    LLEForCausalLM.from_backbone(wrapped / "hub", use_history=False).save_pretrained(wrapped / "lle")
    arguments = ("load", folder, copy, bare_site, translator, tmp_path / "banked", wrapped)
    remote = run_client(*arguments, home=tmp_path, isolated=True, HF_HUB_OFFLINE="1")
    ours = logits(AutoModelForCausalLM.from_pretrained(folder))
    assert_near(remote, ours)
    again = {path.name for path in copy.iterdir()}
    assert again == {path.name for path in folder.iterdir()} - {"README.md"}
    assert json.loads((copy / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    assert logits(AutoModelForCausalLM.from_pretrained(copy)) == ours


@pytest.mark.server
def test_push_and_load_over_http(folder: Path, hub: HubStandIn, tmp_path: Path) -> None:
    loaded = run_client("push", folder, "someone/cat", home=tmp_path, **access(hub))
    assert_near(loaded, logits(AutoModelForCausalLM.from_pretrained(folder)))
    pushed = hub.files("someone/cat")
    assert set(pushed) == {path.name for path in folder.iterdir()}
    assert all(pushed[name] == (folder / name).read_bytes() for name in CODE | {"tokenizer.json", "README.md"})


@pytest.mark.server
def test_remote_code_over_http(folder: Path, hub: HubStandIn, bare_site: Path, tmp_path: Path) -> None:
    pushed = run_client("push", folder, "someone/cat", home=tmp_path / "one", **access(hub))
    arguments = ("load", "someone/cat", tmp_path / "copy", bare_site)
    remote = run_client(*arguments, home=tmp_path / "two", isolated=True, **access(hub))
    assert_near(remote, pushed)
    assert {path.name for path in (tmp_path / "copy").iterdir()} == set(hub.files("someone/cat")) - {"README.md"}
    assert "--" not in (tmp_path / "copy" / "config.json").read_text()


@pytest.mark.hub
def test_push_and_load_on_the_real_hub(folder: Path, bare_site: Path, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    api = HfApi(token=os.environ["HF_TOKEN"])
    repo = f"{api.whoami()['name']}/lle-test-{uuid.uuid4().hex[:8]}"
    try:
        pushed = run_client("push", folder, repo, home=tmp_path / "one")
        arguments = ("load", repo, tmp_path / "copy", bare_site)
        remote = run_client(*arguments, home=tmp_path / "two", isolated=True)
    finally:
        api.delete_repo(repo, missing_ok=True)
    assert_near(pushed, logits(AutoModelForCausalLM.from_pretrained(folder)))
    assert_near(remote, pushed)


def test_card_holds_what_the_hub_indexes(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "apache-2.0"
    assert head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "text-generation"
    assert {"lle", "recurrent"} <= set(head["tags"])
    assert (head["language"], head["datasets"]) == (["en"], ["someone/mats"])
    measured = {metric["name"]: metric["value"] for metric in head["model-index"][0]["results"][0]["metrics"]}
    assert measured == {"base_test_ppl": 80.123, "stream_test_ppl": 71.5}
    assert "| parameters | 10,660 |\n| base_test_ppl | 80.123 |\n| stream_test_ppl | 71.500 |\n" in text
    assert all(part in text for part in ("lle evaluate runs/cat", "hidden_size: 16", 'model="someone/cat"'))


def test_example_of_the_card_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(example.replace("someone/cat", str(folder)), {})
    assert "The" in capsys.readouterr().out


def test_card_without_metrics_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="lle evaluate"):
        write_model_card(folder, {"command": "x"}, repo_id="a/b", dataset="c")
