"""Words of a text, in any script.

Notable: words are runs of letters and digits. Every other character except white space is a word of its own, and so is
each Chinese character and each kana, since these scripts do not separate words.
"""

import re
from collections.abc import Iterator

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


def words(text: str) -> list[str]:
    """The words of a text.

    >>> words("Where is my card, 猫?")
    ['Where', 'is', 'my', 'card', ',', '猫', '?']
    """
    return _WORD.findall(text)


def find_words(text: str) -> Iterator[re.Match[str]]:
    """The words of a text, with their places."""
    return _WORD.finditer(text)
