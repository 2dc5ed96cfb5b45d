"""Projected keys: what the projection makes of states, for entries, for queries, and in every copy of a bank."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modeling_lle import HistoryBank
from modeling_lle.bank.manifest import MANIFEST, BankError
from modeling_lle.bank.parquet import from_parquet, to_parquet
from modeling_lle.bank.projection import Projection
from scripts.benchmark.damage import synthetic_segment
from tests.factories.forged_banks import forge_manifest, forge_tensors
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER, make_ids, make_texts
from tests.factories.translators import make_word_translator

WIDTH = 3
FIRST = [0.490209, 0.626617, 0.128677]  # the first row of the axes from a width of 6 to one of 3
TEXTS = make_texts(24, 9)


def build(path: Path | None = None, texts: list[str] = TEXTS[:12], **options: Any) -> HistoryBank:
    options = {"key_width": WIDTH, "source": "first", "namespace": "ann", **options}
    return HistoryBank.build(make_language_model(), WORD_TOKENIZER, texts, path, **options)


def keys_of(bank: HistoryBank) -> Tensor:
    return torch.cat([batch.keys for batch in bank.snapshot().entries()]).float()


def predictions(bank: HistoryBank) -> Tensor:
    model = make_language_model()
    model.attach_history(bank)
    with torch.no_grad():
        return model(make_ids(2, 9)).logits


def points(count: int, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    spread = torch.randn(count, width, generator=generator) * torch.arange(width, 0, -1)
    return torch.nn.functional.normalize(spread + 3, dim=1)


def test_the_axes_are_orthonormal_and_the_same_everywhere() -> None:
    projection, states = Projection.random(6, WIDTH), points(9)
    torch.testing.assert_close(projection.axes.T @ projection.axes, torch.eye(WIDTH))
    assert projection.axes[0].tolist() == pytest.approx(FIRST, abs=1e-6)
    torch.testing.assert_close(projection(states), torch.nn.functional.normalize(states @ projection.axes, dim=1))


def test_cosines_of_keys_are_near_those_of_states() -> None:
    states = torch.nn.functional.normalize(torch.randn(40, 512, generator=torch.Generator().manual_seed(0)) + 0.7)
    keys = Projection.random(512, 128)(states)
    assert (keys @ keys.T - states @ states.T).square().mean().sqrt() < 1 / 128**0.5


def test_entries_and_queries_are_projected(tmp_path: Path) -> None:
    whole, bank = build(key_width=None), build(tmp_path / "bank")
    projection = bank.snapshot().projection
    assert projection is not None
    expected = projection(keys_of(whole)).bfloat16().float()
    torch.testing.assert_close(keys_of(bank), expected)
    queries = points(5)
    found = bank.search(queries, 4)
    similarity, index = (projection(queries) @ expected.T).sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(found.similarity, similarity[:, :4])
    assert torch.equal(found.ids, index[:, :4])
    assert (bank.width, bank.state_width, bank.info()["is_projected"]) == (WIDTH, 6, True)
    with pytest.raises(ValueError, match=r"queries must be \(Q, 6\), got \(5, 3\)"):
        bank.search(queries[:, :WIDTH], 4)
    model = make_language_model(hidden_size=7)
    with pytest.raises(BankError, match=r"another backbone \(width 6, .* this model's \(width 7, "):
        model.attach_history(bank)


def test_what_was_forgotten_leaves_nothing_in_the_files(tmp_path: Path) -> None:
    """Beyond ids and counts of changes, they are those of a bank that never held it, though it was there first."""
    never = build(tmp_path / "never", source="second")
    bank = build(tmp_path / "bank", TEXTS[12:])
    bank.add(TEXTS[:12], source="second", namespace="ann")
    bank.forget(source="first")
    bank.compact()
    assert torch.equal(predictions(bank), predictions(never))
    held: list[Any] = []
    for own in (bank, never):
        values = json.loads((own.folder.path / MANIFEST).read_text())
        for name in ("identity", "generation", "next_id", "sha256"):
            del values[name]
        contents = {}
        for file in [values["projection"].pop("file"), *(segment.pop("file") for segment in values["segments"])]:
            contents |= load_file(own.folder.path / file["name"])
        held.append((values, {name: value.tolist() for name, value in contents.items() if name != "ids"}))
    assert held[0] == held[1]


def test_what_comes_and_goes_later_leaves_the_projection_as_it_is(tmp_path: Path) -> None:
    """After forgetting, predictions are to the last bit those of a bank that never held the entries."""
    bank = build(tmp_path / "bank")
    bank.save_pretrained(tmp_path / "copy")
    projection = bank.snapshot().projection
    bank.add(TEXTS[12:], source="second", namespace="bob")
    with_second = predictions(bank)
    bank.forget(source="second")
    assert bank.snapshot().projection is projection
    for changed in (bank, HistoryBank.open(tmp_path / "bank"), HistoryBank.open(tmp_path / "copy")):
        assert torch.equal(predictions(changed), predictions(HistoryBank.open(tmp_path / "copy")))
        changed.compact()
    assert not torch.equal(with_second, predictions(bank))
    assert bank.verify() == []
    to_parquet(bank, tmp_path / "bank.parquet")
    again = from_parquet(tmp_path / "bank.parquet", tmp_path / "again")
    assert torch.equal(predictions(again), predictions(bank))
    again.add(TEXTS[12:], model=make_language_model(), tokenizer=WORD_TOKENIZER, namespace="bob")
    assert torch.equal(predictions(again), with_second)


def test_a_bank_without_entries_projects() -> None:
    bank = HistoryBank.temporary("x", 6, 99, key_width=2)
    assert (bank.search(points(3), 2).ids == -1).all()
    bank.append([synthetic_segment(points(1), "first")], "default")
    torch.testing.assert_close(keys_of(bank), Projection.random(6, 2)(points(1).bfloat16()).bfloat16().float())


def test_a_bank_goes_on_with_the_axes_in_its_file(tmp_path: Path) -> None:
    """As those of banks of before, which are learned from their entries."""
    axes = torch.linalg.qr(points(6))[0][:, :WIDTH].contiguous()
    build(tmp_path / "bank")
    forge_tensors(tmp_path / "bank", lambda tensors: tensors.update(axes=axes), "projection")
    bank = HistoryBank.open(tmp_path / "bank")
    to_parquet(bank, tmp_path / "bank.parquet")
    for own in (bank, from_parquet(tmp_path / "bank.parquet", tmp_path / "again")):
        own.append([synthetic_segment(points(9), "second")], "bob")
        torch.testing.assert_close(keys_of(own)[-9:], Projection(axes)(points(9).bfloat16()).bfloat16().float())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build(key_width=7), "between 2 and that of the model's states, 6; got 7"),
        (lambda: build(key_width=1), "between 2 and that of the model's states, 6; got 1"),
        (
            lambda: HistoryBank.build(make_word_translator(), WORD_TOKENIZER, [], key_width=2),
            "a translation memory compares few candidates",
        ),
        (
            lambda: HistoryBank.temporary("x", 6, 9, key_width=2).append(
                [synthetic_segment(points(9, 5), "first")], "default"
            ),
            "projects states of the width 6, got 5",
        ),
    ],
)
def test_a_projection_that_cannot_be_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def forge_axes(change: Callable[[Tensor], Any]) -> Callable[[Path], Any]:
    return lambda path: forge_tensors(path, lambda tensors: change(tensors["axes"]), "projection")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (forge_axes(lambda axes: axes.fill_(torch.nan)), "values that are no numbers"),
        (forge_axes(lambda axes: axes.set_(axes[:, :2].clone())), "does not project states of the width 6 to keys"),
        (
            lambda path: forge_tensors(path, lambda t: t.update(mean=t["axes"][0].clone()), "projection"),
            "does not hold a projection",
        ),
        (lambda path: next(path.glob("projection-*")).write_bytes(b""), "is damaged"),
        (lambda path: next(path.glob("projection-*")).unlink(), "is missing"),
        (lambda path: forge_manifest(path, lambda values: values["projection"].update(file=None)), "no manifest of"),
        (lambda path: forge_manifest(path, lambda values: values["projection"].update(width=0)), "has 0 as width of"),
        (lambda path: forge_manifest(path, lambda values: values.update(projection=3)), "no manifest of a bank"),
    ],
)
def test_a_strangers_projection(tmp_path: Path, change: Callable[[Path], Any], message: str) -> None:
    build(tmp_path / "bank")
    change(tmp_path / "bank")
    with pytest.raises(BankError, match=message):
        HistoryBank.open(tmp_path / "bank")
