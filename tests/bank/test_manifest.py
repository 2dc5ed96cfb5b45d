"""The manifest: a stranger's or a damaged one, with every checksum right, is refused by name, and never taken over."""

import contextlib
import dataclasses
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from modeling_lle import HistoryBank
from modeling_lle.bank.files import MANIFEST, Added, BankError, Folder, Manifest
from scripts.benchmark.damage import make_bank
from tests.factories.forged_banks import forge_manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bank(tmp_path_factory.mktemp("made") / "bank")


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A bank that a test may forge."""
    return shutil.copytree(made, tmp_path / "bank")


def test_a_newer_version(path: Path) -> None:
    data = (path / MANIFEST).read_bytes().replace(b'"version": 2', b'"version": 4')
    (path / MANIFEST).write_bytes(data)
    with pytest.raises(BankError, match="has version 4, the installed modeling_lle reads up to 3: upgrade"):
        HistoryBank.open(path)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"format": 1, "version": "x"}']
)
def test_a_manifest_that_is_none(path: Path, data: bytes) -> None:
    (path / MANIFEST).write_bytes(data)
    with pytest.raises(BankError, match=r"manifest.json is damaged"):
        HistoryBank.open(path)


def test_a_manifest_cannot_name_other_files(path: Path) -> None:
    manifest = Folder(path).read_manifest()
    info = manifest.segments[0]
    outside = Manifest("x", 6, 11, segments=(info.__class__(info.file.__class__("../a", 1, "0"), "n", 1, 1, 1),))
    (path / MANIFEST).write_bytes(outside.to_bytes())
    with pytest.raises(BankError, match=r"names '../a', which is no file of a bank"):
        HistoryBank.open(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.update(next_id=0), "has more entries than ids were given"),
        (lambda values: values.update(next_id=1.5), "has 1.5 as next_id"),
        (lambda values: values.update(width=0), "has 0 as width"),
        (lambda values: values.update(width=True), "has True as width"),
        (lambda values: values.update(vocab_size="many"), "has 'many' as vocab_size"),
        (lambda values: values.update(generation=-1), "has -1 as generation"),
        (lambda values: values.update(fingerprint=None), "has None as fingerprint"),
        (lambda values: values.update(identity="\ud800"), "holds half of a character"),
        (lambda values: values.update(labels=[3]), "has 3 as label 0"),
        (lambda values: values.update(labels=["a", "a"]), "names a label twice"),
        (lambda values: values.update(copy_of=[]), "is no manifest of a bank"),
        (lambda values: values.update(more=1), "is no manifest of a bank"),
        (lambda values: values.pop("segments"), "is no manifest of a bank"),
        (lambda values: values.update(segments=[None]), "is no manifest of a bank"),
        (lambda values: values["segments"].append(values["segments"][0]), "names a file twice"),
        (lambda values: values["segments"][0].update(entries=-1), "has -1 as entries"),
        (lambda values: values["segments"][0].update(namespace=7), "has 7 as namespace"),
        (
            lambda values: values["segments"][0]["file"].update(name="../outside"),
            "names '../outside', which is no file",
        ),
        (lambda values: values["segments"][0]["file"].update(name=["a"]), r"names \['a'\], which is no file"),
        (lambda values: values["segments"][0]["file"].update(bytes=None), "has None as bytes"),
        (lambda values: values["added"][0].update(rows="x"), "has 'x' as rows"),
        (lambda values: values["added"].append(values["added"][0]), "names a source twice"),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_a_manifest_whose_values_cannot_be(path: Path, change: Any, message: str, verify: bool) -> None:
    forge_manifest(path, change)
    with pytest.raises(BankError, match=f"manifest.json {message}"):
        HistoryBank.open(path, verify=verify)


def test_a_manifest_that_is_too_large_is_not_read(path: Path) -> None:
    with (path / "manifest.json").open("r+b") as file:
        file.truncate(1 << 32)  # a sparse file
    with pytest.raises(BankError, match=r"manifest.json has .* bytes, and .* at most are read"):
        HistoryBank.open(path)


def test_names_may_look_like_escapes(path: Path) -> None:
    bank = HistoryBank.open(path)
    names = ["C:\\ud8a", "\\\\ud800", "\U0001f680"]
    bank.folder.write_manifest(dataclasses.replace(bank.manifest, added=tuple(Added("default", n, 1) for n in names)))
    assert [item.source for item in HistoryBank.open(path).manifest.added] == names


def test_any_value_of_a_manifest_may_be_another(path: Path) -> None:
    """Whatever takes the place of a value, the bank opens or a BankError says what is wrong."""
    choose, whole = random.Random(0), (path / "manifest.json").read_bytes()
    strange = [None, True, -1, 0, 1 << 70, 1.5, "", "x", "\ud800", [], [[]], {}, {"a": 1}, float("nan")]
    for _ in range(60):
        (path / "manifest.json").write_bytes(whole)

        def change(values: dict[str, Any]) -> None:
            place: Any = values
            while True:
                keys = list(place) if isinstance(place, dict) else list(range(len(place)))
                key = choose.choice(keys)
                if not isinstance(place[key], dict | list) or not place[key] or choose.random() < 0.2:
                    place[key] = choose.choice(strange)
                    return
                place = place[key]

        forge_manifest(path, change)
        with contextlib.suppress(BankError):
            HistoryBank.open(path).info()


def test_a_manifest_is_read_as_it_was_written(path: Path) -> None:
    manifest = Folder(path).read_manifest()
    assert Manifest.from_bytes(manifest.to_bytes(), path / MANIFEST) == manifest
    old = dataclasses.replace(manifest, identity="")
    assert b'"version": 1' in old.to_bytes()
    assert Manifest.from_bytes(old.to_bytes(), path / MANIFEST) == old


def test_an_older_copy_is_one_that_nobody_has_changed() -> None:
    original = Manifest("x", 6, 11, generation=5, identity="original")
    copy = Manifest("x", 6, 11, generation=3, identity="copy", copy_of=("original", 3))
    assert copy.is_older_copy(original)
    assert not dataclasses.replace(copy, generation=4).is_older_copy(original)  # it was changed since
    assert not dataclasses.replace(copy, generation=6, copy_of=("original", 6)).is_older_copy(original)
    assert not copy.is_older_copy(dataclasses.replace(original, identity="other"))
    assert not original.is_older_copy(original)
