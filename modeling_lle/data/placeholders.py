"""Placeholders, markup and the marks of accelerators that a translation must keep.

Notable: the cases of an ICU message, `{n, plural, one {...} other {...}}`, are texts, and their number depends on the
language: only the head and the set of placeholders within the cases must stay. An accelerator, the key that selects an
item, is marked by `&` or `_` before its letter, which may be another one in each language: only their number counts.
"""

import re
from collections import Counter
from collections.abc import Sequence

_NUMBER = r"(?:\.(?:\*|\d+))?(?:hh?|ll?|[Lqjzt])?"  # precision and length of printf
_WORD = r"[A-Za-z\u00c0-\u024f\d_]"  # Chinese and Japanese have no spaces around a placeholder
# Unnamed placeholders with a percent sign. The sign is plain after a number ("100%ig", "50 % d'habitants") and before
# a lone space or hyphen ("50 % of", "100 %-ig"). Qt's numbers have one digit here, as "%50" is Turkish for "50%".
_BARE = "|".join(
    [
        rf"%(?:\d+\$)?(?:[-+#0]*(?:\*|\d+)|[+#0]*){_NUMBER}[diouxXeEfFgGcrs@]",  # %d, %1$s, %5.2f
        rf"(?P<spaced>%\x20[-+#0]*(?:(?:\*|\d+){_NUMBER}[diouxXeEfFgG]|{_NUMBER}d)(?!{_WORD}|['\u2019]))",  # % d
        rf"%L?[1-9](?![.,]?\d)|%L?n(?!{_WORD})",  # %1, %L1 and %n of Qt
    ]
)
_PATTERN = re.compile(
    "|".join(
        [
            r"(?P<none>%%)",  # a percent sign of printf
            r"\$\{\w+\}",  # ${name}
            r"%\{[\w.]+\}",  # %{name}
            r"\{\{\{[^{}\n]*\w[^{}\n]*\}\}\}|\{\{[^{}\n]*\w[^{}\n]*\}\}",  # {{{name}}}, {{ name | filter }}
            r"(?P<cases>\{\s*(?P<argument>\w+)\s*,\s*(?P<kind>plural|selectordinal|select)\s*,)",
            r"\{\s*\w+\s*,\s*(?:number|date|time|spellout|ordinal|duration)\s*(?:,[^{}]*)?\}",  # {n, number, integer}
            r"\{(?:[^\W\d]\w*|\d+)?(?:\.\w+|\[[^\]{}]*\])*(?:![rsa])?(?::[^{}]*)?\}",  # {name.part[0]!r:>10}
            rf"(?:%\(\w+\)|%<\w+>)(?:[-+#0]*(?:\*|\d+)|[+#0]*){_NUMBER}[diouxXeEfFgGcrs@]",  # %(name)s, %<name>s
            rf"(?P<bare>{_BARE})",
            r"</?(?:[A-Za-z][\w:.-]*|\d+)(?:\s+[\w:.-]+\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'<>]+))*\s*/?>",  # <a b="c">
            r"&(?:[A-Za-z][A-Za-z0-9]*|\#\d+|\#[xX][0-9A-Fa-f]+);",  # &amp; and &#39;
        ]
    )
)
_BRACE = re.compile(r"'[{}]'|[{}]")  # '{' is a quoted one
_CASE = re.compile(r"\s*(?:offset:\d+\s*)?(?P<key>=\d+|[\w-]+)\s*(?=\{)")
_END = re.compile(r"\s*\}")
_MARKED = re.compile(
    r"(?<![\w&=/?.@#])(?P<before>[^\W\d_]*)(?P<mark>[&_])(?P<after>[^\W_]+)(?![\w&=;])"  # _File, Sa&ve; not &&, a_b_c
)


def placeholders(text: str) -> list[str]:
    """Placeholders and markup of a text, in order.

    >>> placeholders('<b>{name}</b> has %d new &quot;messages&quot;, 100% of %(total)s')
    ['<b>', '{name}', '</b>', '%d', '&quot;', '&quot;', '%(total)s']
    >>> placeholders("{n, plural, one {# file in %1} other {# files in %1}}")
    ['{n, plural}', '%1']
    """
    found: list[str] = []
    closing: dict[int, int] | None = None
    parts: list[tuple[int, int, set[str] | None]] = [(0, len(text), None)]  # parts still to scan, next one last
    while parts:
        place, end, known = parts.pop()
        after_last = place
        while match := _PATTERN.search(text, place, end):
            place = match.end()
            item = match[0]
            if match["cases"]:
                closing = _closing_braces(text) if closing is None else closing
                message = _cases(text, match, closing)
                if message is None:
                    place = match.start() + 1
                    continue
                item, cases, place = message
                seen = set() if known is None else known
                parts.append((place, end, known))
                parts += [(*case, seen) for case in reversed(cases)]
            elif match["none"] or (match["bare"] and _follows_number(text, match, after_last)):
                place = match.end() if match["none"] else match.start() + 1
                continue
            if known is None or item not in known:
                found.append(item)
                if known is not None:
                    known.add(item)
            after_last = place
            if match["cases"]:
                break
    return found


def _follows_number(text: str, match: re.Match[str], after_last: int) -> bool:
    """Whether a percent sign belongs to the number before it, which does not end a placeholder at `after_last`."""
    before = match.start()
    if match["spaced"] and before > after_last and text[before - 1] in " \u00a0\u202f":
        before -= 1
    return before > after_last and text[before - 1].isdigit()


def _closing_braces(text: str) -> dict[int, int]:
    """Maps indices of opening braces to those of their closing braces."""
    closing, opened = {}, []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            closing[opened.pop()] = match.start()
    return closing


def _cases(text: str, head: re.Match[str], closing: dict[int, int]) -> tuple[str, list[tuple[int, int]], int] | None:
    """Placeholder of a message with cases, spans of their texts, and its end; None if it is not one."""
    if head.start() not in closing:
        return None
    place, keys, texts = head.end(), [], []
    while match := _CASE.match(text, place):
        opened = match.end()
        if opened not in closing:
            return None
        keys.append(match["key"])
        texts.append((opened + 1, closing[opened]))
        place = closing[opened] + 1
    end = _END.match(text, place)
    if not keys or end is None:
        return None
    chosen = f", {' '.join(sorted(keys))}" if head["kind"] == "select" else ""  # alike in each language
    return f"{{{head['argument']}, {head['kind']}{chosen}}}", texts, end.end()


def differences(source: str, target: str) -> tuple[list[str], list[str]]:
    """Placeholders that a translation lost, and those that it added.

    Counts matter, order does not.

    >>> differences("%s of {total}", "{total} und {total}")
    (['%s'], ['{total}'])
    """
    before, after = Counter(placeholders(source)), Counter(placeholders(target))
    return list((before - after).elements()), list((after - before).elements())


def accelerators(text: str) -> list[str]:
    """Words with the mark of an accelerator, in order.

    Within a word, a mark stands before a small letter, and an underscore in a word that begins with a capital, so that
    names such as AT&T and my_file are none.

    >>> accelerators("_File, Sa&ve, E_xit (&Q): AT&T, R&D, my_file, a && b, &amp;")
    ['_File', 'Sa&ve', 'E_xit', '&Q']
    """
    return [match[0] for match in _MARKED.finditer(without_placeholders(text)) if _is_accelerator(match)]


def _is_accelerator(match: re.Match[str]) -> bool:
    before, after = match["before"], match["after"]
    if not before:
        return True
    return after[0].islower() and (match["mark"] == "&" or before[0].isupper())


def without_placeholders(text: str) -> str:
    """A text of the same length with blanks for its placeholders; the cases of messages stay."""
    return _PATTERN.sub(lambda match: " " * len(match[0]), text)


def plain_words(text: str) -> tuple[str, Sequence[int]]:
    """A text with blanks for its placeholders and without the marks of accelerators, and where its characters stood.

    >>> plain_words("Sa&ve {it}")
    ('Save     ', [0, 1, 3, 4, 5, 6, 7, 8, 9])
    """
    blanked = without_placeholders(text)
    if "&" not in blanked and "_" not in blanked:
        return blanked, range(len(blanked))
    marks = {match.start("mark") for match in _MARKED.finditer(blanked) if _is_accelerator(match)}
    places = [place for place in range(len(blanked)) if place not in marks]
    return "".join(blanked[place] for place in places), places


def accelerator_differences(source: str, target: str) -> tuple[list[str], list[str]]:
    """Words whose accelerator a translation lost, and words with one that it added.

    Of each mark only the number counts, since the letter and the word are those of the language.

    >>> accelerator_differences("&File", "&Datei"), accelerator_differences("Sa_ve", "Sichern")
    (([], []), (['Sa_ve'], []))
    """
    lost: list[str] = []
    added: list[str] = []
    before, after = accelerators(source), accelerators(target)
    for mark in "&_":
        own, new = (Counter(word for word in side if mark in word) for side in (before, after))
        only_own, only_new = list((own - new).elements()), list((new - own).elements())  # words that both have stay
        lost += only_own[len(only_new) :]
        added += only_new[len(only_own) :]
    return lost, added


def faults(source: str, target: str) -> tuple[list[str], list[str]]:
    """Placeholders, markup and words with an accelerator that a translation lost, and those that it added."""
    both = [compare(source, target) for compare in (differences, accelerator_differences)]
    lost, added = ([item for found in both for item in found[side]] for side in (0, 1))
    return lost, added


def most_faithful(source: str, targets: Sequence[str]) -> int:
    """Index of the translation with the fewest faults, the first of equal ones.

    Of the hypotheses of a beam search, which come by their score, it is the best that keeps what must be kept.

    >>> most_faithful("%d files", ["Dateien", "%d Datei", "%d Dateien"])
    1
    """
    return min(range(len(targets)), key=lambda place: sum(map(len, faults(source, targets[place]))))
