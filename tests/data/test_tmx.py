"""Translation memories: the texts of every unit, and as many units as can be had from a damaged file."""

import re
import time
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_lle.data.tmx import read_units

HEADER = '<?xml version="1.0" encoding="{}"?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n<tmx version="1.4">\n'
HEADER += '<header srclang="en" segtype="sentence"><note>no <hi>text</hi></note></header>\n<body>\n'
XML_TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]), max_size=10)


def unit(*texts: tuple[str, str]) -> str:
    segments = "".join(f"<tuv xml:lang={quoteattr(name)}><seg>{text}</seg></tuv>" for name, text in texts)
    return f'<tu tuid="x"><prop type="p">skip</prop>{segments}</tu>\n'


def document(*units: str, encoding: str = "utf-8") -> str:
    return HEADER.format(encoding) + "".join(units) + "</body></tmx>\n"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.tmx"


def test_units(path: Path) -> None:
    units, broken = read_units(
        write(path, document(unit(("en", "a"), ("de", "A")), unit(("en-US", "b"), ("de", "B"))))
    )
    assert [(part.line, part.texts) for part in units] == [(6, {"en": "a", "de": "A"}), (7, {"en-US": "b", "de": "B"})]
    assert not broken


def test_markup_is_kept_as_its_text_and_spaces_as_they_are(path: Path) -> None:
    marked = 'a <bpt i="1">&lt;b&gt;</bpt>c<ept i="1">&lt;/b&gt;</ept> <ph><sub>d</sub></ph><it>{0}</it><ph x="1"/>'
    spaced = " \n two  \t&#160;\u2028<![CDATA[<tu>&]]>\n"
    units, broken = read_units(write(path, document(unit(("en", marked), ("de", spaced), ("fr", "")))))
    assert units[0].texts == {
        "en": "a <b>c</b> d{0}",
        "de": " \n two  \t\xa0\u2028<tu>&\n",
        "fr": "",
    }
    assert not broken


def test_of_several_texts_in_one_language_the_first_counts(path: Path) -> None:
    content = document(unit(("en", "a"), ("en", "b"))).replace("xml:lang", "lang")
    assert read_units(write(path, content))[0][0].texts == {"en": "a"}


@given(texts=st.lists(st.tuples(XML_TEXTS, XML_TEXTS), max_size=4), cut=st.integers(0, 10))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_any_text(path: Path, encoding: str, texts: list[tuple[str, str]], cut: int) -> None:
    units = [unit(("en", escape(source)), ("de", escape(target))) for source, target in texts]
    content = document(*units, encoding=encoding.removesuffix("-sig"))
    for ending in (0, cut):  # without its end, the file is read unit by unit
        write(path, content[: len(content) - ending].encode(encoding))
        assert [part.texts for part in read_units(path)[0]] == [{"en": a, "de": b} for a, b in texts]


@pytest.mark.parametrize("encoding", ["iso-8859-1", "windows-1252", "koi8-r", "shift_jis"])
@pytest.mark.parametrize("end", ["</body></tmx>", ""])
def test_other_encodings(path: Path, encoding: str, end: str) -> None:
    text = {"koi8-r": "привет", "shift_jis": "表示"}.get(encoding, "Grüße")
    content = HEADER.format(encoding) + unit(("de", text)) + end
    assert read_units(write(path, content.encode(encoding)))[0][0].texts == {"de": text}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            "<tu><tuv xml:lang='en'><seg>x & y</seg></tuv></tu>",
            "line 7 of .*is not valid XML, .*: not well-formed",
        ),
        (
            "<tu>\n<tuv xml:lang='en'>\n<seg>x</tuv></tu>",
            "line 9 of .* is not valid XML, .*: mismatched tag",
        ),
        ("<tu><tuv xml:lang='en'><seg>x</seg></tuv>", "the unit in line 7 of .*memory.tmx' has no end"),
        ("<tu><tuv xml:lang='en'><seg>\x01</seg></tuv></tu>", "line 7 of .* not well-formed"),
        (
            "<tu><tuv xml:lang='en'><seg>&nosuch;</seg></tuv></tu>",
            "line 7 of .* has the unknown entity 'nosuch'",
        ),
        (
            "<tu><tuv><seg>x</seg></tuv></tu>",
            "the unit in line 7 of .* has a text without a language: it lacks xml:lang",
        ),
        ("<tu", "the unit in line 7 of .* has no end"),
        ("</body>", "line 11 of .* is not valid XML, .*: mismatched tag"),
        ("\x00\x00<", "line 7 of .* is not valid XML"),
    ],
)
def test_what_is_around_the_damage_is_read(path: Path, damage: str, message: str) -> None:
    good = [unit(("en", text)) for text in "abcd"]
    units, broken = read_units(write(path, document(good[0], f"{damage}\n", *good[1:])))
    texts = "".join(part.texts["en"] for part in units)
    assert texts == "abcd"
    lines = [part.line for part in units]
    assert lines[-1] == 10 + damage.count("\n")
    assert len(broken) == 1
    assert re.search(message, broken[0])


def test_bytes_that_are_not_utf_8(path: Path) -> None:
    content = (
        document(unit(("en", "a")), unit(("en", "caf?")), unit(("en", "b"))).encode().replace(b"caf?", b"caf\xe9")
    )
    units, broken = read_units(write(path, content))
    assert [part.texts["en"] for part in units] == ["a", "b"]
    assert "line 7 of" in broken[0]
    assert "is not valid XML, or not in the declared encoding: not well-formed" in broken[0]


def test_encodings_with_faults(path: Path) -> None:
    content = document(unit(("en", "a")), unit(("en", "b?")), unit(("en", "c")), encoding="windows-1252").encode()
    units, broken = read_units(write(path, content.replace(b"b?", b"b\x81")))
    assert [part.texts["en"] for part in units] == ["a", "c"]
    assert "line 7 of" in broken[0]
    assert read_units(write(path, document(unit(("en", "ü")), encoding="UTF-16")))[0][0].texts == {"en": "ü"}
    with pytest.raises(ValueError, match=r"cannot read .*memory.tmx': unknown encoding: nosuch: save it as UTF-8"):
        read_units(write(path, document(encoding="nosuch")))


@pytest.mark.parametrize("content", ["", "no XML", "<tmx>", "\ufeff"])
def test_nothing_to_read(path: Path, content: str) -> None:
    units, broken = read_units(write(path, content))
    assert not units
    assert len(broken) == 1


def test_bombs_do_not_go_off(path: Path) -> None:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">\n' for n in range(1, 12))
    bomb = document(unit(("en", "&e11;"))).replace(
        'SYSTEM "tmx14.dtd"', f'[<!ENTITY e0 "boom">\n{entities}<!ENTITY file SYSTEM "file:///etc/passwd">]'
    )
    start = time.perf_counter()
    with pytest.raises(
        ValueError, match=r"line 2 of .*memory.tmx' declares the entity 'e0': write what it stands for"
    ):
        read_units(write(path, bomb))
    assert time.perf_counter() - start < 1
    with pytest.raises(ValueError, match="declares the entity 'file'"):
        read_units(write(path, document().replace('SYSTEM "tmx14.dtd"', '[<!ENTITY file SYSTEM "/etc/passwd">]')))
