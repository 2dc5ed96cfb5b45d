"""Codes of languages, as columns, files and headers name them."""

from collections.abc import Iterable


def match_language(wanted: str, found: Iterable[str]) -> str | None:
    """The wanted language or, if absent, its first variant, such as "en-US" of "en"; None without either."""
    wanted = _plain(wanted)
    names = list(found)
    same = [name for name in names if _plain(name) == wanted]
    varieties = [name for name in names if _plain(name).startswith(f"{wanted}-")]
    return next(iter(same + varieties), None)


def _plain(language: str) -> str:
    return language.lower().replace("_", "-")
