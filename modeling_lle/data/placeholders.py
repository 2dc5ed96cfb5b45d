"""Placeholders and markup, which a translation has to keep as they are."""

import re
from collections import Counter

# A percent sign after a digit, or before a space or a hyphen alone, is a plain one: "100%ig", "50 % of", "100 %-ig".
_PATTERN = re.compile(
    r"""
      (?P<none>%%)                                                                   # a percent sign of printf
    | \$\{\w+\}                                                                      # ${name}
    | \{ (?:[^\W\d]\w*|\d+)? (?:\.\w+|\[[^\]{}]*\])* (?:![rsa])? (?::[^{}]*)? \}     # {name.part[0]!r:>10}
    | (?: %\(\w+\) | (?<!\d)%(?:\d+\$)? )                                            # %(name)s and %1$s,
      (?: [-+#0]*(?:\*|\d+) | [+#0]* ) (?:\.(?:\*|\d+))? (?:hh?|ll?|[Lqjzt])? [diouxXeEfFgGcrs@]    # or %5.2f
    | </? (?:[A-Za-z][\w:.-]*|\d+) (?:\s+[\w:.-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>]+))* \s*/?>     # <a href="...">
    | & (?:[A-Za-z][A-Za-z0-9]*|\#\d+|\#[xX][0-9A-Fa-f]+) ;                          # &amp; and &#39;
    """,
    re.VERBOSE,
)


def placeholders(text: str) -> list[str]:
    """The placeholders and the markup of a text, in their order.

    >>> placeholders('<b>{name}</b> has %d new &quot;messages&quot;, 100% of %(total)s')
    ['<b>', '{name}', '</b>', '%d', '&quot;', '&quot;', '%(total)s']
    """
    return [match[0] for match in _PATTERN.finditer(text) if match["none"] is None]


def differences(source: str, target: str) -> tuple[list[str], list[str]]:
    """What a translation lost, and what it added.

    Their order makes no difference, but how often each of them occurs does.

    >>> differences("%s of {total}", "{total} und {total}")
    (['%s'], ['{total}'])
    """
    before, after = Counter(placeholders(source)), Counter(placeholders(target))
    return list((before - after).elements()), list((after - before).elements())
