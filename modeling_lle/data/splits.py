"""Splits of a source: by the names of its files, and by the name that is asked for.

Notable: a name decides a split only if it is exactly train, validation or test, or another usual word for them. Code
and documentation have files such as train.py and testing.md too, so names count only if all files have one, or if
there is a train split and the files of the splits hold most of the text.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath

SPLITS = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_SHARD = re.compile(r"(?P<word>[a-z]+)-\d+-of-\d+")  # train-00000-of-00002.parquet of the Hub
_BEGINNING = re.compile(r"(?P<word>[a-z]+)[_-]")  # test_2016_flickr.en, beside train.en


def find_splits(
    places: Mapping[Path, PurePath], sizes: Mapping[Path, int]
) -> tuple[dict[str, list[Path]], list[Path]]:
    """Finds the splits that the names of files decide.

    Args:
        places: For each file its place below the source, the name of the file included.
        sizes: For each file its size in bytes.

    Returns:
        The files of each split, and those of no split. Without splits, both are empty.
    """
    exact = {file: split for file, place in places.items() if (split := _exact(place))}
    exact |= _families(places, exact)
    beginning = {file: split for file, place in places.items() if file not in exact and (split := _beginning(place))}
    found = exact
    if len(exact) < len(places):
        found = exact | beginning
        most = 2 * sum(sizes[file] for file in exact) >= sum(sizes.values())
        alike = len(found) == len(places) and len(set(found.values())) == 1
        if not alike and not ("train" in exact.values() and most):
            return {}, []
    splits: dict[str, list[Path]] = {}
    for file in places:
        if file in found:
            splits.setdefault(found[file], []).append(file)
    return splits, [file for file in places if file not in found]


def _exact(place: PurePath) -> str | None:
    """The split that the outermost folder or the name of a file names exactly."""
    stem = place.name.partition(".")[0].lower() or place.name
    shard = _SHARD.fullmatch(stem)
    words = [*(part.lower() for part in place.parent.parts), shard["word"] if shard else stem]
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def _families(places: Mapping[Path, PurePath], known: Mapping[Path, str]) -> dict[Path, str]:
    """Splits of files that have one name but for the split between dots: ptb.train.txt, ptb.test.txt.

    Such a family counts if all files belong to it, or if it has a train split and another one.
    """
    families: dict[tuple[str, ...], dict[Path, str]] = {}
    for file, place in places.items():
        parts = place.name.split(".")
        words = [part for part in parts[1:-1] if part.lower() in SPLITS]
        if words and file not in known:
            others = [part for part in parts[:-1] if part not in words]
            families.setdefault((str(place.parent), *others), {})[file] = SPLITS[words[0].lower()]
    return {
        file: split
        for family in families.values()
        if len(family) == len(places) or ("train" in family.values() and len(set(family.values())) > 1)
        for file, split in family.items()
    }


def _beginning(place: PurePath) -> str | None:
    match = _BEGINNING.match(place.name.lower())
    return SPLITS.get(match["word"]) if match else None


def pick_split(split: str | Sequence[str] | None, available: Iterable[str], where: str) -> str:
    """The split of `available` that is meant.

    Args:
        split: Its name; names in order of preference; None: the only one.
        available: Names of the splits.
        where: Name of the source in messages.

    Raises:
        ValueError: There is no such split, or several and none is named.
    """
    names = list(available)
    if split is None or not isinstance(split, str):
        preferred = [SPLITS.get(name, name) for name in split or ()]
        chosen = next((name for name in (*(split or ()), *preferred) if name in names), None)
        if chosen is not None or len(names) == 1:
            return chosen or names[0]
        raise ValueError(f"{where} has several splits, name one of them: {', '.join(names)}")
    for candidate in (split, SPLITS.get(split)):
        if candidate in names:
            return candidate
    raise ValueError(f"{where} has no split {split!r}; it has: {', '.join(names)}")
