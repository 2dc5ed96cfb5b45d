"""What a translation has to keep: found in its order, and nothing else taken for it."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_lle.data.placeholders import differences, placeholders

KNOWN = [
    *("{}", "{0}", "{name}", "{name!r:>10}", "{:.2f}", "{user.name}", "{rows[0]}", "{größe}", "${name}", "${HOME}"),
    *("%s", "%d", "%i", "%(name)s", "%(count)d", "%(x)05.1f", "%1$s", "%2$d", "%5.2f", "%-10s", "%+d", "%05d", "%.3g"),
    *("%*d", "%lu", "%zd", "%#x", "%@"),
    *("<b>", "</a>", "<br/>", "<br />", '<a href="https://a.b/c?d=%s&e=f">', "<x id='1' n=2/>", "<xliff:g>", "<0>"),
    *("&amp;", "&#39;", "&#x2019;", "&brandShortName;"),
]
PLAIN = [
    *(
        "50 % of all",
        "100%",
        "100 % sure",
        "eine 100%ige Lösung",
        "zu 100 %-ig",
        "20%er",
        "5% discount",
        "%",
        "100%的",
    ),
    *("a < b", "a<b and b>c", "x <y and z> w", "I <3 it", "<john@example.org>", "<https://example.org>", "-> <- <>"),
    *("R&D", "AT&T; no: A & B;", "$name", "$5", "a {b c} d", "{", "}", "{ }", "{'a'}", "{-1}"),
    *("%%", "100%% of", "%%s", "%%(name)s"),
]


@pytest.mark.parametrize("known", KNOWN)
def test_found_wherever_it_stands(known: str) -> None:
    for text in (known, f"a {known} b", f"({known})", f"«{known}».", f"猫{known}猫"):
        assert placeholders(text) == [known]


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text(text: str) -> None:
    assert placeholders(text) == (["&T;"] if "&T;" in text else [])


@given(parts=st.lists(st.sampled_from(KNOWN)), between=st.sampled_from([" ", " a ", "\n", ", "]))
def test_all_in_their_order(parts: list[str], between: str) -> None:
    assert placeholders(between.join(parts)) == parts


def test_without_anything_between() -> None:
    assert placeholders("<b>%s%d%%{a}{b}</b>%(c)s&lt;${d}%1$s%2$s") == [
        *("<b>", "%s", "%d", "{a}", "{b}", "</b>", "%(c)s", "&lt;", "${d}", "%1$s", "%2$s")
    ]


def test_differences() -> None:
    assert differences("{a} and %s <b>x</b>", "<b>y</b> %s und {a}") == ([], [])
    assert differences("{a} {a} %s", "{a} {b} %d %d") == (["{a}", "%s"], ["{b}", "%d", "%d"])
    assert differences("100% of", "100 % von") == ([], [])
    assert differences("%(name)s", "% (name) s") == (["%(name)s"], [])


@given(source=st.text("{}%sd(n)<b>/&a; $1"), target=st.text("{}%sd(n)<b>/&a; $1"))
def test_what_is_lost_one_way_is_added_the_other(source: str, target: str) -> None:
    lost, added = differences(source, target)
    assert differences(target, source) == (added, lost)
    assert len(placeholders(source)) - len(lost) == len(placeholders(target)) - len(added)
    assert not set(lost) & set(added)


@pytest.mark.parametrize("part", ["<a ", "<a b=", "{a.", "{a[", "%0", "%(a", "&a", "<a" + " " * 50, "${a", "</1"])
def test_hostile_texts_take_no_time(part: str) -> None:
    start = time.perf_counter()
    assert not placeholders(part * 4000)
    assert time.perf_counter() - start < 5
