"""Gettext catalogues: read as polib reads them, and completed with no other byte changed."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("polib")
import polib

from modeling_lle.data.catalogue import Catalogue, check_language, read_catalogue, read_compiled, write_catalogue

HEADER = r"""# Deutsche Fassung.
#, fuzzy
msgid ""
msgstr ""
"Project-Id-Version: x\n"
"Content-Type: text/plain; charset=UTF-8\n"
"Plural-Forms: nplurals=2; plural=(n != 1);\n"

"""
BODY = r"""#. a comment of the program
#: a.c:1 b.c:2
#, c-format
msgid "%d apple"
msgid_plural "%d apples"
msgstr[0] "%d Apfel"
msgstr[1] "%d Äpfel"

#   translator
#: with space.c:3
msgid ""
"Two\n"
"lines"
msgstr "Zwei\n"
  "Zeilen"
msgctxt "menu"
msgid "Open \"it\""
msgstr   ""

#, no-wrap
#| msgid "old"
msgid "Close\\\t"
msgstr ""
""

#, fuzzy
msgid "Fuzzy"
msgstr "Unscharf"

msgid "%d file"
msgid_plural "%d files"
msgstr[0] ""
msgstr[1] ""

#~ msgid "gone"
#~ msgstr ""

#~| msgid "before"
#~ msgid "done"
#~ msgid_plural "dones"
#~ msgstr[0] "fertig"
#~ msgstr[1] ""
# the end
"""
FILLED = {"Open": ['Öffne "es"\n'], "Close": ["Zu\r\\"], "%d file": ["%d Datei", "%d Dateien"]}
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=12)
NAMES = st.text("abc", min_size=1, max_size=3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "de.po"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def line_of(start: str) -> int:
    return next(n for n, line in enumerate((HEADER + BODY).splitlines(), start=1) if line.startswith(start))


def translations(catalogue: Catalogue) -> list[list[str]]:
    return [next(FILLED[key] for key in FILLED if entry.texts[0].startswith(key)) for entry in catalogue.untranslated]


def test_what_is_untranslated(path: Path) -> None:
    found = read_catalogue(write(path, HEADER + BODY)).untranslated
    assert [(entry.line, entry.context, entry.texts) for entry in found] == [
        (line_of('msgid "Open'), "menu", ('Open "it"',)),
        (line_of('msgid "Close'), None, ("Close\\\t",)),
        (line_of('msgid "%d file"'), None, ("%d file", "%d files")),
    ]


def test_what_is_filled_in(path: Path) -> None:
    catalogue = read_catalogue(write(path, HEADER + BODY))
    write_catalogue(catalogue, translations(catalogue))
    expected = BODY.replace(
        'msgctxt "menu"\nmsgid "Open \\"it\\""\nmsgstr   ""',
        '#, fuzzy\nmsgctxt "menu"\nmsgid "Open \\"it\\""\nmsgstr   "Öffne \\"es\\""',
    )
    expected = expected.replace("#, no-wrap", "#, fuzzy, no-wrap").replace('msgstr ""\n""', 'msgstr "Zu\\r\\\\"')
    expected = expected.replace('msgid "%d file"', '#, fuzzy\nmsgid "%d file"')
    expected = expected.replace('msgstr[0] ""\nmsgstr[1] ""', 'msgstr[0] "%d Datei"\nmsgstr[1] "%d Dateien"')
    assert path.read_text() == HEADER + expected
    assert not read_catalogue(path).untranslated
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_filled_in_without_a_flag_and_elsewhere(path: Path) -> None:
    path.touch(mode=0o640)
    catalogue = read_catalogue(write(path, HEADER + BODY))
    other = path.with_name("new.po")
    write_catalogue(catalogue, translations(catalogue), other, fuzzy=False)
    assert path.read_text() == HEADER + BODY
    assert other.stat().st_mode == path.stat().st_mode
    before, after = ({(e.msgctxt, e.msgid): e for e in polib.pofile(str(file))} for file in (path, other))
    assert before.keys() == after.keys()
    changed = {key[1]: after[key] for key in after if str(after[key]) != str(before[key])}
    assert {text: entry.msgstr for text, entry in changed.items()} == {
        'Open "it"': 'Öffne "es"',
        "Close\\\t": "Zu\r\\",
        "%d file": "",
    }
    assert changed["%d file"].msgstr_plural == {0: "%d Datei", 1: "%d Dateien"}
    assert not any(entry.fuzzy for entry in changed.values())


LOOSE = r"""msgid
"red\033[0m \a"
msgstr
"rot\033[0m" " \a\x7" "\?"

msgid "two" " on\n" "a line"
msgstr "" ""

msgctxt
"menu"
msgid
"%d a"
msgid_plural "%d " "as"
msgstr[0]
""
msgstr[1] ""
""

#~ msgid
#~ "old"
#~ msgstr "alt" "\303\274"
"""


def test_strings_may_stand_as_those_of_c(path: Path) -> None:
    catalogue = read_catalogue(write(path, HEADER + LOOSE))
    assert [(entry.context, entry.texts, entry.translations) for entry in catalogue.entries[1:]] == [
        (None, ("red\033[0m \a",), ("rot\033[0m \a\a\\?",)),
        (None, ("two on\na line",), ("",)),
        ("menu", ("%d a", "%d as"), ("", "")),
        (None, ("old",), ("altü",)),
    ]
    write_catalogue(catalogue, [["zwei auf\neiner"], ["%d A", "%d As"]], fuzzy=False)
    filled = LOOSE.replace('msgstr "" ""', 'msgstr ""\n"zwei auf\\n"\n"einer"')
    filled = filled.replace('msgstr[0]\n""\nmsgstr[1] ""\n""', 'msgstr[0]\n"%d A"\nmsgstr[1] "%d As"')
    assert path.read_text() == HEADER + filled
    assert read_catalogue(path).entries[2].translations == ("zwei auf\neiner",)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (r'msgid "\777"', r"line 9 of .* has the escape \\777, which is not valid UTF-8"),
        (r'msgid "\xff"', r"line 9 of .* has the escape \\xff, which is not valid UTF-8"),
        ('msgid\nmsgstr "a"', "line 9 of .* has no text after msgid"),
        ('msgid "a"\nmsgstr', "line 10 of .* has no text after msgstr"),
        ('msgid "a" msgstr "b"', "line 9 of .* .two keywords"),
    ],
)
def test_strings_that_no_tool_of_gettext_reads(path: Path, lines: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_catalogue(write(path, f"{HEADER}{lines}\n"))


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
def test_bytes_are_kept(path: Path, ends: str, start: str, last: bool) -> None:
    content = (start + HEADER + BODY + 'msgid "last"\nmsgstr ""' + "\n" * last).replace("\n", ends).encode()
    catalogue = read_catalogue(write(path, content))
    assert len(catalogue.untranslated) == 4
    write_catalogue(catalogue, [None, [" "], ["x", ""], None])
    assert path.read_bytes() == content
    write_catalogue(catalogue, [None, None, None, ["eins\nzwei"]])
    filled = 'msgstr ""\n"eins\\n"\n"zwei"' + "\n" * last
    expected = content.decode().removesuffix(f'msgid "last"{ends}msgstr ""{ends * last}')
    assert path.read_bytes().decode() == expected + f'#, fuzzy\nmsgid "last"\n{filled}'.replace("\n", ends)


@pytest.mark.parametrize("charset", ["ISO-8859-1", "UTF-8", "CHARSET", "Shift_JIS", "GB18030", "ISO-2022-JP"])
def test_encodings(path: Path, charset: str) -> None:
    before, new = ("Größe", "Äpfel") if charset in ("ISO-8859-1", "UTF-8", "CHARSET") else ("表示", "予")
    codec = "utf-8" if charset == "CHARSET" else charset
    content = HEADER.replace("UTF-8", charset) + f'msgid "a"\nmsgstr "{before}"\n\nmsgid "b"\nmsgstr ""\n'
    catalogue = read_catalogue(write(path, content.encode(codec)))
    assert catalogue.entries[1].translations == (before,)
    write_catalogue(catalogue, [[new]], fuzzy=False)
    assert path.read_bytes() == content.replace('msgstr ""\n', f'msgstr "{new}"\n').replace(
        f'msgstr "{new}"\n"Project', 'msgstr ""\n"Project'
    ).encode(codec)
    if codec == "ISO-8859-1":
        changed = path.read_bytes()
        catalogue = read_catalogue(write(path, content.encode(codec)))
        with pytest.raises(
            ValueError, match=r"the translation 'č' cannot be encoded as ISO-8859-1, the encoding of .*: conv"
        ):
            write_catalogue(catalogue, [["č"]])
        assert path.read_bytes() == content.encode(codec) != changed


@pytest.mark.parametrize(
    ("number", "present", "expected"),
    [
        (1, 1, ["P"]),
        (1, 2, ["P", ""]),
        (2, 2, ["S", "P"]),
        (3, 2, ["S", "P", "P"]),
        (4, 1, ["S", "P", "P", "P"]),
        (None, 1, ["P"]),
        (None, 3, ["S", "P", "P"]),
    ],
)
def test_plural_forms(path: Path, number: int | None, present: int, expected: list[str]) -> None:
    header = HEADER.replace("nplurals=2", f"nplurals={number or 'INTEGER'}")
    entry = 'msgid "s"\nmsgid_plural "p"\n' + "".join(f'msgstr[{form}] ""\n' for form in range(present))
    for after in ("", '\nmsgid "x"\nmsgstr "y"\n'):
        for last in ("\n", ""):
            catalogue = read_catalogue(write(path, (header + entry + after).removesuffix("\n") + last))
            write_catalogue(catalogue, [["S", "P"]])
            written = polib.pofile(str(path))
            assert written[0].msgstr_plural == dict(enumerate(expected))
            assert written[0].fuzzy
            assert path.read_text().endswith("\n") == bool(last)
            assert read_catalogue(path).untranslated == []


def test_forms_that_are_translated_stay(path: Path) -> None:
    catalogue = read_catalogue(write(path, HEADER + 'msgid "s"\nmsgid_plural "p"\nmsgstr[0] "Alt"\nmsgstr[1] ""\n'))
    write_catalogue(catalogue, [["S", "P"]])
    assert polib.pofile(str(path))[0].msgstr_plural == {0: "Alt", 1: "P"}


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("a", "\nb\n", "b"),
        ("\na\n", "b", "\nb\n"),
        ("a\n", "b\n", "b\n"),
        ("\n\na", "\n\nb", "\n\nb"),
        ("a\nb", "c\nd", "c\nd"),
    ],
)
def test_line_breaks_at_both_ends_are_those_of_the_text(path: Path, source: str, text: str, expected: str) -> None:
    catalogue = read_catalogue(write(path, f'{HEADER}msgid "{polib.escape(source)}"\nmsgstr ""\n'))
    write_catalogue(catalogue, [[text]])
    assert polib.pofile(str(path))[0].msgstr == expected


@st.composite
def files(draw: st.DrawFn) -> polib.POFile:
    made = polib.POFile(wrapwidth=draw(st.sampled_from([0, 30, 78])))
    made.metadata = {"Content-Type": "text/plain; charset=UTF-8", "Plural-Forms": "nplurals=2; plural=n != 1;"}
    for name in draw(st.lists(NAMES, max_size=6, unique=True)):
        plural = draw(st.booleans())
        texts = draw(st.tuples(TEXTS, TEXTS))
        entry = polib.POEntry(
            msgid=name + draw(TEXTS),
            msgctxt=draw(st.none() | NAMES),
            tcomment=draw(NAMES | st.just("")),
            occurrences=draw(st.lists(st.tuples(NAMES, st.just("1")), max_size=2)),
            flags=draw(st.lists(st.sampled_from(["fuzzy", "c-format"]), unique=True)),
            obsolete=draw(st.integers(0, 4)) == 0,
            previous_msgid=draw(st.none() | NAMES),
        )
        if plural:
            entry.msgid_plural, entry.msgstr_plural = name + "s", dict(enumerate(texts))
        else:
            entry.msgstr = texts[0]
        made.append(entry)
    return made


def comparable(entry: polib.POEntry) -> tuple:
    translated = tuple(entry.msgstr_plural.values()) if entry.msgid_plural else (entry.msgstr,)
    texts = (entry.msgid, entry.msgid_plural) if entry.msgid_plural else (entry.msgid,)
    return entry.msgctxt, texts, translated, frozenset(entry.flags), bool(entry.obsolete)


@given(made=files(), text=TEXTS.filter(str.strip), ends=st.sampled_from(["\n", "\r\n"]), fuzzy=st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_reads_and_writes_what_polib_reads(path: Path, made: polib.POFile, text: str, ends: str, fuzzy: bool) -> None:
    content = str(made).replace("\n", ends).encode()
    catalogue = read_catalogue(write(path, content))
    before = polib.pofile(str(path))
    assert [
        (e.context, e.texts, e.translations, e.flags, e.obsolete) for e in catalogue.entries if not e.is_header
    ] == [comparable(entry) for entry in before]
    write_catalogue(catalogue, [None] * len(catalogue.untranslated))
    assert path.read_bytes() == content
    write_catalogue(catalogue, [[text] * len(entry.texts) for entry in catalogue.untranslated], fuzzy=fuzzy)
    after = polib.pofile(str(path))
    assert str(after.metadata_as_entry()) == str(before.metadata_as_entry())
    for old, new in zip(before, after, strict=True):
        if not (old.obsolete or old.fuzzy or old.translated()):
            assert new.fuzzy == fuzzy
            new.flags, forms = old.flags, list(new.msgstr_plural.values()) or [new.msgstr]
            assert [form.strip("\n") for form in forms] == [
                form.strip("\n") or text.strip("\n") for form in list(old.msgstr_plural.values()) or [old.msgstr]
            ]
            new.msgstr, new.msgstr_plural = old.msgstr, old.msgstr_plural
        assert str(new) == str(old)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            'msgid "a\nmsgstr "b"\n',
            "line 9 of .*de.po' is not valid PO .*: 'msgid",
        ),
        ('msgid "a"\nmsgstr "b"c"\n', "line 10 of .* is not valid PO"),
        ('msgid "a"\nmsgstr "b\\"\n', "line 10 of .* is not valid PO"),
        ('msgid "a"\nmsgstr b\n', "line 10 of .* is not valid PO"),
        ('msgid "a"\nmgstr "b"\n', "line 10 of .* is not valid PO .* 'mgstr"),
        ('msgid "a"\n', "line 9 of .* begins an entry that should have msgid and msgstr, or .* but has: msgid$"),
        ('msgid "a"\n#, c-format\n', "line 9 of .* begins an entry .* but has: msgid$"),
        ('msgctxt "c"\nmsgstr "b"\n', "line 9 of .* begins an entry .* but has: msgctxt, msgstr$"),
        ('msgid "a"\nmsgid_plural "b"\nmsgstr "c"\n', "line 9 of .* but has: msgid, msgid_plural, msgstr$"),
        ('msgid "a"\nmsgid_plural "b"\nmsgstr[1] "c"\n', r"line 9 of .* but has: msgid, msgid_plural, msgstr\[1\]$"),
        ('msgid "a"\nmsgstr[0] "b"\n', r"line 9 of .* but has: msgid, msgstr\[0\]$"),
        ('msgid "a"\nmsgstr "b"\nmsgstr "c"\n', "line 11 of .* is out of place: 'msgstr"),
        ('# c\n"a"\nmsgid "a"\nmsgstr "b"\n', "line 10 of .* is out of place: '\"a\"'"),
        (b'msgid "a"\nmsgstr "\xe9"\n', "line 10 of .* is not UTF-8, the encoding of the header: .*byte 0xe9"),
        ("<<<<<<< HEAD\n", "line 9 of .* is not valid PO .*<<<<<<< HEAD'"),
    ],
)
def test_faults_are_named_and_the_rest_is_read(path: Path, fault: str | bytes, message: str) -> None:
    fault = fault.encode() if isinstance(fault, str) else fault
    good = b'# next\nmsgid "x"\nmsgstr "y"\n'
    write(path, HEADER.encode() + fault + good)
    with pytest.raises(ValueError, match=message.removesuffix("$")) as caught:
        read_catalogue(path)
    assert str(caught.value).endswith(": fix it")
    catalogue = read_catalogue(path, skip_broken=True)
    assert [entry.texts for entry in catalogue.entries if not entry.is_header] == [("x",)]
    assert len(catalogue.broken) == 1
    assert re.search(message, catalogue.broken[0])


@given(cut=st.integers(0, len((HEADER + BODY).encode())))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_file_that_was_cut_off_loses_its_last_entry_alone(path: Path, cut: int) -> None:
    whole = read_catalogue(write(path, HEADER + BODY)).entries
    part = read_catalogue(write(path, (HEADER + BODY).encode()[:cut]), skip_broken=True)
    before = [(entry.line, entry.texts) for entry in whole]
    found = [(entry.line, entry.texts) for entry in part.entries]
    assert found == before[: len(found)]
    assert len(part.broken) <= 2  # where msgid_plural is cut off, a second entry seems to begin
    assert all(old.translations == new.translations for old, new in zip(whole, part.entries[:-1], strict=False))


def test_wrong_arguments(path: Path) -> None:
    catalogue = read_catalogue(write(path, HEADER + BODY))
    with pytest.raises(
        ValueError, match=r"there are 1 translations for the 3 entries of catalogue.untranslated: give"
    ):
        write_catalogue(catalogue, [["a"]])
    with pytest.raises(
        ValueError, match=r"entry in line 38 of .* has 2 texts: give a list of as many .*instead of \['"
    ):
        write_catalogue(catalogue, [None, None, ["a"]])
    with pytest.raises(
        ValueError, match=r"entry in line 25 of .* has 1 texts: give a list of as many .*instead of 'a'"
    ):
        write_catalogue(catalogue, ["a", None, None])
    write(path, HEADER)
    with pytest.raises(ValueError, match=r"de.po' has changed since it was read: read it again"):
        write_catalogue(catalogue, [None, None, None])
    assert path.read_text() == HEADER
    with pytest.raises(FileNotFoundError, match=r"cannot write .*new.po': there is no folder .*none'; make it first"):
        write_catalogue(catalogue, [None, None, None], path.parent / "none" / "new.po")
    with pytest.raises(ValueError, match=r"cannot write .*new.txt': its name should end with one of .po, .pot"):
        write_catalogue(catalogue, [None, None, None], path.parent / "new.txt")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*ed.po' .did you mean 'de.po'"):
        read_catalogue(path.with_name("ed.po"))
    with pytest.raises(ValueError, match=r"cannot read .*a.txt': give a file whose name ends with one of .po, .pot"):
        read_catalogue(write(path.with_name("a.txt"), "a"))


def test_an_interrupted_file_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = read_catalogue(write(path, HEADER + BODY))
    monkeypatch.setattr("shutil.copymode", lambda *files: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_catalogue(catalogue, translations(catalogue))
    assert path.read_text() == HEADER + BODY
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_byte_order_mark_stays_in_front(path: Path) -> None:
    write_catalogue(read_catalogue(write(path, '\ufeffmsgid "a"\nmsgstr ""\n')), [["b"]])
    assert path.read_text() == '\ufeff#, fuzzy\nmsgid "a"\nmsgstr "b"\n'


def test_a_file_without_entries(path: Path) -> None:
    for content in ("", "# only a comment\n"):
        catalogue = read_catalogue(write(path, content))
        assert catalogue.untranslated == []
        write_catalogue(catalogue, [])
        assert path.read_text() == content


def test_compiled_files(path: Path) -> None:
    compiled = path.with_suffix(".mo")
    polib.pofile(HEADER + BODY).save_as_mofile(str(compiled))
    assert sorted(read_compiled(compiled).entries) == [
        (("%d apple", "%d apples"), ("%d Apfel", "%d Äpfel")),
        (("Two\nlines",), ("Zwei\nZeilen",)),
    ]
    content = compiled.read_bytes()
    for size in range(len(content)):
        with pytest.raises(ValueError, match=r"de.mo' is not a valid MO file, perhaps truncated: make"):
            read_compiled(write(compiled, content[:size]))


def test_compiled_files_with_texts_in_another_encoding(path: Path) -> None:
    compiled = path.with_suffix(".mo")
    polib.pofile(HEADER + BODY).save_as_mofile(str(compiled))
    content = compiled.read_bytes()
    assert "Äpfel".encode() in content
    write(compiled, content.replace("Äpfel".encode(), "_Äpfel".encode("latin-1")))
    with pytest.raises(ValueError, match=r"de.mo' has the text b'%d _.*', which is not utf-8, the encoding of its"):
        read_compiled(compiled)


@pytest.mark.parametrize("language", ["de", "DE", "de_AT", "de@formal", "de_DE.UTF-8", "", "German", "LANGUAGE"])
def test_the_language_of_a_header_may_be_a_variant_or_unknown(language: str) -> None:
    check_language(f"MIME-Version: 1.0\nLanguage: {language}\nX-Language: fr\n", "de", "de.po")
    check_language("", "de", "de.po")


@pytest.mark.parametrize("language", ["fr", "fr_CA ", "deu", "nds", "sr@latin"])
def test_a_catalogue_of_another_language_is_named(language: str) -> None:
    named = language.strip().split("@")[0]
    with pytest.raises(
        ValueError,
        match=f"'de.po' is a catalogue of '{named}' by its header, and the target language is 'de': leave it out, "
        f"give {named} as target_language, or mend the line Language of its header",
    ):
        check_language(f"Language: {language}\n", "de", "de.po")
