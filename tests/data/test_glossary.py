"""Glossaries: read from tables and TBX, terms found in a source, and looked for in a translation."""

from pathlib import Path

import pytest

from modeling_lle.data import Glossary, Term, load_glossary
from modeling_lle.data.glossary import check_terms

GLOSSARY = Glossary(
    [
        Term("file", ("Datei",)),
        Term("File system", ("Dateisystem",)),
        Term("entry", ("Eintrag",)),
        Term("bus", ("Bus",)),
        Term("猫", ("Katze",)),
    ]
)
TBX = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE martif SYSTEM "TBXcoreStructV02.dtd">
<martif type="TBX"><text><body>
<termEntry id="1"><descrip type="subjectField">it</descrip>
  <langSet xml:lang="en-US"><tig><term>file</term><termNote type="partOfSpeech">noun</termNote></tig></langSet>
  <langSet xml:lang="de"><ntig><termGrp><term>Akte</term>
    <termNote type="administrativeStatus">deprecatedTerm-admn-sts</termNote></termGrp></ntig>
    <tig><term>Datei</term></tig><tig><term> Text-
      datei</term></tig></langSet>
</termEntry>
<termEntry id="2"><langSet xml:lang="en"><tig><term>only &amp; English</term></tig></langSet></termEntry>
</body></text></martif>
"""
TBX_3 = """<tbx:tbx xmlns:tbx="urn:iso:std:iso:30042:ed-2" type="TBX-Basic" xml:lang="en"><tbx:text><tbx:body>
<tbx:conceptEntry><tbx:langSec xml:lang="en"><tbx:termSec><tbx:term>file</tbx:term></tbx:termSec></tbx:langSec>
<tbx:langSec xml:lang="de"><tbx:termSec><tbx:term>Datei</tbx:term></tbx:termSec><tbx:termSec><tbx:term>File</tbx:term>
<basic:administrativeStatus xmlns:basic="http://x">supersededTerm-admn-sts</basic:administrativeStatus></tbx:termSec>
</tbx:langSec></tbx:conceptEntry></tbx:body></tbx:text></tbx:tbx>
"""


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Open the FILE, or two files.", ["file", "file"]),
        ("the file systems", ["File system"]),
        ("all entries", ["entry"]),
        ("a &file and Sa&ve _Entry, file's", ["file", "entry", "file"]),
        ("profile, filed, {file}, %(file)s, my_file, bu", []),
        ("buses", ["bus"]),
        ("黒猫が", ["猫"]),
        ("", []),
    ],
)
def test_terms_are_found_as_whole_words_with_usual_endings(text: str, expected: list[str]) -> None:
    assert [found.term.source for found in GLOSSARY.find(text)] == expected


def test_places_are_those_of_the_text() -> None:
    text = "{x} the &file s_y, F&iles"
    assert [text[found.start : found.end] for found in GLOSSARY.find(text)] == ["file", "F&iles"]
    german = Glossary([Term("Datei", ("file",))], "de-AT")
    assert [found.start for found in german.find("Dateien, Datei, Dateis")] == [0, 9, 16]


@pytest.mark.parametrize(
    ("target", "yes", "no"),
    [
        ("Datei", ["Dateien", "Systemdatei", "DATEI", "Dateiname", "D&atei"], ["Daten", "{Datei}"]),
        ("löschen", ["löscht", "gelöscht", "Löschung"], ["losch er"]),
        ("Haus", ["Häuser", "Rathaus"], ["Ha us"]),
        ("künstliche Intelligenz", ["einer künstlichen Intelligenz"], ["Intelligenz, künstlich", "künstlich"]),
        ("App", ["Apps", "Web-App"], ["Apfel", "klappt"]),
        ("文件", ["打开文件夹"], ["文", "文的件"]),
        ("C++", ["in C++."], ["in C."]),
    ],
)
def test_inflected_forms_and_compounds_are_uses_of_a_term(target: str, yes: list[str], no: list[str]) -> None:
    def found(text: str) -> bool:
        return check_terms(text, [Term("x", (target,))])[0].found

    assert [found(text) for text in yes] == [True] * len(yes)
    assert [found(text) for text in no] == [False] * len(no)


def test_a_word_counts_for_one_term_and_any_translation_is_right() -> None:
    file, system = Term("file", ("Datei", "File")), Term("file system", ("Dateisystem",))
    uses = check_terms("Files im Dateisystem", [file, system, file])
    assert [(use.source, use.target, use.found) for use in uses] == [
        ("file", "File", True),
        ("file system", "Dateisystem", True),
        ("file", "Datei", False),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "de,note,en\nDatei,x,file\nFile,,FILE\n\nBaum,,tree\n"),
        ("a.tsv", "\ufeffSource\tTarget\tcase\nfile\tDatei\tno\nfile\tFile\nfile\tDatei\ntree\t Baum \n"),
        ("a.csv", "en-GB,de_AT\nfile,Datei\nfile,File\ntree,Baum\n"),
    ],
)
def test_tables(tmp_path: Path, name: str, content: str) -> None:
    glossary = load_glossary(write(tmp_path / name, content), source_language="en", target_language="de")
    assert glossary.terms == [Term("file", ("Datei", "File")), Term("tree", ("Baum",))]


def test_tbx_of_both_versions_without_deprecated_terms(tmp_path: Path) -> None:
    for content, targets in ((TBX, ("Datei", "Text- datei")), (TBX_3, ("Datei",))):
        path = write(tmp_path / "a.tbx", content)
        assert load_glossary(path, source_language="en", target_language="de").terms == [Term("file", targets)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "en,de\nfile,Datei\n\ntree, \n", "line 4 of .*a.csv' has no translation: fill it in, or remove the"),
        ("a.tsv", "en\tde\n\tDatei\n", "line 2 of .*a.tsv' has no term: fill it in"),
        ("a.csv", "en,de\nfile\n", "line 2 of .* has no translation"),
        ("a.csv", "en,fr\nfile,fichier\n", "line 1 of .*a.csv' names no column 'de' or 'target': call .*: en, fr"),
        ("a.csv", "en,de\n", "a.csv' has no terms: give a line for each"),
        ("a.csv", "en,de\n!!,\u2026\n \n", None),
        ("a.csv", b"en,de\nb\xe9,c\n", "a.csv' is not UTF-8"),
        ("a.txt", "file", "cannot read .*a.txt': give a file whose name ends with one of .csv, .tsv, .tbx"),
        ("a.tbx", TBX.replace('"de"', '"fr"'), "a.tbx' has no term in 'de'; its languages are: en, en-US, fr"),
        ("a.tbx", TBX.replace("file<", " <"), "the entry in line 4 of .*a.tbx' has a blank term: fill it in"),
        ("a.tbx", TBX.replace("English</term>", ""), "line 11 of .*a.tbx' is not valid XML.*: fix it"),
        ("a.tbx", TBX.replace(' xml:lang="en"', ""), "the entry in line 11 of .* lacks xml:lang: fix it"),
        ("a.tbx", TBX.replace("SYSTEM", "[<!ENTITY a SYSTEM 'x'>] SYSTEM"), "line 2 of .* declares the entity 'a'"),
    ],
)
def test_faults_name_the_line_and_what_to_do(
    tmp_path: Path, name: str, content: str | bytes, message: str | None
) -> None:
    path = write(tmp_path / name, content)
    if message is None:
        assert len(load_glossary(path, source_language="en", target_language="de")) == 1  # signs are terms as well
        return
    with pytest.raises(ValueError, match=message):
        load_glossary(path, source_language="en", target_language="de")


def test_what_is_not_there(tmp_path: Path) -> None:
    write(tmp_path / "terms.csv", "en,de\nfile,Datei\n")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*term.csv' \(did you mean 'terms.csv'\?\)"):
        load_glossary(tmp_path / "term.csv")
    with pytest.raises(ValueError, match="names no column 'source': call the column of the source so"):
        load_glossary(tmp_path / "terms.csv")
    with pytest.raises(ValueError, match="are named by language: give source_language and target_language"):
        load_glossary(write(tmp_path / "a.tbx", TBX))
    with pytest.raises(ValueError, match=r"the term 'a' has \(' ',\) as translations: give words for both"):
        Glossary([Term("a", (" ",))])
