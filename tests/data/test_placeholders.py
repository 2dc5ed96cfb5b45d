"""What a translation has to keep: found in its order, and nothing else taken for it."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_lle.data.placeholders import accelerator_differences, accelerators, differences, placeholders

KNOWN = [
    *("{}", "{0}", "{name}", "{name!r:>10}", "{:.2f}", "{user.name}", "{rows[0]}", "{größe}", "${name}", "${HOME}"),
    *("%s", "%d", "%i", "%(name)s", "%(count)d", "%(x)05.1f", "%1$s", "%2$d", "%5.2f", "%-10s", "%+d", "%05d", "%.3g"),
    *("%*d", "%lu", "%zd", "%#x", "%@"),
    *("<b>", "</a>", "<br/>", "<br />", '<a href="https://a.b/c?d=%s&e=f">', "<x id='1' n=2/>", "<xliff:g>", "<0>"),
    *("&amp;", "&#39;", "&#x2019;", "&brandShortName;"),
    *("%1", "%9", "%L1", "%n", "%Ln", "% d", "% 5d", "%{name}", "%<name>s", "%<n>.2f"),
    *("{{name}}", "{{ user.name | upper }}", "{{{raw}}}", "{n, number}", "{n,number,integer}", "{when, date, short}"),
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
    *(
        "100% done",
        "50 % discount",
        "50 % d",
        "5\u00a0% d",
        "50 % d'habitants",
        "en % d\u2019habitants",
        "antal % i 2020",
    ),
    *("%50 indirim", "%1.5 x", "%1,5 x", "%name", "%nächste", "100%n", "5%1", "{n, plural}", "{n, plural, one}"),
    *("{n, color, red}", "{{ }}", "{{", "%{", "%<>s"),
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


def test_placeholders_of_qt_side_by_side() -> None:
    assert placeholders("%1%2 %L3%n % d") == ["%1", "%2", "%L3", "%n", "% d"]


def test_messages_of_icu_may_have_the_cases_of_their_language() -> None:
    english = "{count, plural, =0 {none} one {# file in <b>{folder}</b>} other {# files in <b>{folder}</b>}}, %s"
    polish = "{count,plural, one {# plik w <b>{folder}</b>} few {# w <b>{folder}</b>} other {# <b>{folder}</b>}}, %s"
    assert placeholders(english) == ["{count, plural}", "<b>", "{folder}", "</b>", "%s"]
    assert differences(english, polish) == ([], [])
    assert differences(english, polish.replace("{folder}", "")) == (["{folder}"], [])
    assert differences(english, polish.replace("count", "anzahl")) == (["{count, plural}"], ["{anzahl, plural}"])
    assert differences("{n, plural, other {#}}", "{n, selectordinal, other {#}}")[0] == ["{n, plural}"]


def test_messages_of_icu_within_each_other() -> None:
    text = "{g, select, male {he {n, plural, offset:1 one {a {x}} other {b {x} '{'}}} other {they}} has {x}"
    assert placeholders(text) == ["{g, select, male other}", "{n, plural}", "{x}", "{x}"]
    assert differences(text, text.replace("male {", "mann {"))[0] == ["{g, select, male other}"]  # no category
    for broken in ("{n, plural, one {x {a}", "{n, plural, one {x {a}} and}", "{n, plural, {x {a}}"):
        assert placeholders(broken) == ["{a}"]


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


@pytest.mark.parametrize(
    "part",
    ["<a ", "<a b=", "{a.", "{a[", "%0", "%(a", "&a", "<a" + " " * 50, "${a", "</1", "{a,plural,x{", "{{a", "% "],
)
def test_hostile_texts_take_no_time(part: str) -> None:
    start = time.perf_counter()
    assert not placeholders(part * 4000)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("source", "target", "lost", "added"),
    [
        ("&File", "&Datei", [], []),
        ("Sa&ve", "_Sichern", ["Sa&ve"], ["_Sichern"]),
        ("_File", "Datei", ["_File"], []),
        ("File", "D_atei", [], ["D_atei"]),
        ("Cu_t {my_name} of %(a_b)s", "_Ausschneiden {my_name} aus %(a_b)s", [], []),
        ("E&xit (&Q)", "Beenden (&Q)", ["E&xit"], []),
        ("File", "ファイル(&F)", [], ["&F"]),
        ("&Save && _close", "&Sichern && schließen", ["_close"], []),
        ("AT&T, R&D and my_file", "ATT, Forschung und Meine Datei", [], []),
        ("a &amp; b, __init__, _a_, MAX_SIZE, x?a=1&b=2&c=d", "nichts", [], []),
    ],
)
def test_accelerators(source: str, target: str, lost: list[str], added: list[str]) -> None:
    assert accelerator_differences(source, target) == (lost, added)
    assert accelerator_differences(target, source) == (added, lost)


def test_accelerators_of_hostile_texts_take_no_time() -> None:
    start = time.perf_counter()
    for part in ("&a", "_a", "a_", "A", "A_a ", "&&"):
        accelerators(part * 10_000)
    assert time.perf_counter() - start < 5
