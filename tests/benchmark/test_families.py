"""Models of several families are trained once, into one folder.

That they learn is tested with the trainings (test_language_models.py), and by the slow test of the command backbones.
"""

from pathlib import Path

import pytest

from scripts.benchmark import families
from scripts.benchmark.inputs import context_of, load_model
from scripts.benchmark.peers import language_models
from scripts.benchmark.peers.language_models import count
from tests.factories.texts import make_texts


def test_models_of_equal_size_are_trained_into_a_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    trained: list[str] = []
    monkeypatch.setattr(families, "in_turn", lambda all_, *_: trained.extend(one.subject.name for one in all_))
    monkeypatch.setattr(families, "HELD_OUT", 256)
    monkeypatch.setattr(language_models, "TOLERANCE", 0.3)  # widths come in steps that are large for such models
    texts = tmp_path / "texts"
    texts.mkdir()
    for split, rows in (("train", 60), ("valid", 90)):
        texts.joinpath(f"{split}.txt").write_text("\n".join(make_texts(rows, 8, seed=rows)) + "\n")
    found = families.train_families(str(texts), tmp_path / "runs", print, 1e-4, 300, 96, rate=0.002)
    assert {name: path.name for name, path in found.items()} == {"Mamba2": "mamba2", "LFM2": "lfm2", "LSTM": "lstm"}
    models = {name: load_model(str(path))[0] for name, path in found.items()}
    sizes = [count(model) for model in models.values()]
    assert max(sizes) < 1.4 * min(sizes)
    assert {name: context_of(model) for name, model in models.items()} == {"Mamba2": None, "LFM2": 256, "LSTM": None}
    assert trained == ["Mamba2", "LFM2", "LLE"]
    assert families.train_families("no text is read", tmp_path / "runs", print) == found
    assert len(trained) == 3
