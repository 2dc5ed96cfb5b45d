"""`scripts.catalogues`: which files of projects count, what is kept of them, and that held-out projects stay apart."""

import json
from pathlib import Path

import pytest

pytest.importorskip("polib")
import polib

from modeling_lle.data import load_pairs
from scripts.catalogues import is_useful, main


def write(path: Path, pairs: dict[str, str], compiled: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = polib.POFile()
    file.metadata = {"Content-Type": "text/plain; charset=UTF-8"}
    file += [polib.POEntry(msgid=source, msgstr=target) for source, target in pairs.items()]
    (file.save_as_mofile if compiled else file.save)(str(path))


def read(path: Path) -> list[tuple[str, str]]:
    return [(row["en"], row["de"]) for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three projects in the ways of packages, wheels and sources."""
    shop = {"Delete the file": "Datei löschen", "Save": "Speichern", "An _Order": "Eine _Bestellung"}
    write(
        tmp_path / "in/editor/usr/share/locale/de/LC_MESSAGES/editor.mo", shop | {"Undo": "Rückgängig"}, compiled=True
    )
    write(tmp_path / "in/editor/usr/share/locale/fr/LC_MESSAGES/editor.mo", {"Save": "Enregistrer"}, compiled=True)
    write(tmp_path / "in/web/web/locale/de/LC_MESSAGES/django.po", {"Log in": "Anmelden", "Save": "Sichern"})
    write(tmp_path / "in/web/web/locale/de/LC_MESSAGES/django.mo", {"Log in": "Einloggen"}, compiled=True)
    write(tmp_path / "in/shop/po/de.po", {"an order": "eine Bestellung", "Pay now": "Jetzt bezahlen"})
    (tmp_path / "in/web/web/locale/de/LC_MESSAGES/broken.mo").write_bytes(b"no catalogue")
    return tmp_path


def test_projects_are_collected_and_held_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder / "in"), "--target-language", "de", "--validation", "1"]
    assert main([*arguments, "--held-out", "shop", "--output", str(folder / "out")]) == 0
    said = capsys.readouterr().out
    assert "2 shop  (held out)" in said
    assert "left out: " in said
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "test_shop.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]
    assert read(folder / "out/test_shop.jsonl") == [("an order", "eine Bestellung"), ("Pay now", "Jetzt bezahlen")]
    train, validation = (read(folder / "out" / f"{split}.jsonl") for split in ("train", "validation"))
    both = [*train, *validation]
    assert ("Log in", "Anmelden") in both
    assert ("Log in", "Einloggen") not in both  # the compiled file of the same name
    assert not [source for source, _ in both if source == "An _Order"]  # but for case and key a source of the shop
    assert len({source for source, _ in validation}) == len(validation) == 1
    assert {source for source, _ in train}.isdisjoint(source for source, _ in validation)
    of = {"source_language": "en", "target_language": "de"}
    assert len(load_pairs(folder / "out", split="train", **of)) == len(train)
    assert len(load_pairs(folder / "out", split="test", **of)) == 2


def test_what_is_no_translation_of_words_is_left_out() -> None:
    assert is_useful("Delete the file", "Datei löschen")
    assert not is_useful("Delete the file", "Delete the file")
    assert not is_useful("%d %% -- 100", "%d %% - 100")
    assert not is_useful("File", "Datei " * 20)
    assert not is_useful("word " * 200, "Wort " * 200)


def test_what_is_missing_is_named(folder: Path) -> None:
    of = ["--target-language", "de", "--output", str(folder / "out")]
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        main([str(folder / "nothing"), *of])
    with pytest.raises(FileNotFoundError, match="no catalogue of 'nl'"):
        main([str(folder / "in"), "--target-language", "nl", "--output", str(folder / "out")])
    with pytest.raises(ValueError, match=r"no project shops: there are editor, shop, web"):
        main([str(folder / "in"), *of, "--held-out", "shops"])
    with pytest.raises(ValueError, match="lower --validation"):
        main([str(folder / "in"), *of])
    assert not (folder / "out").exists()
