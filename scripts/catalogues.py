"""Collects the gettext catalogues of unpacked or installed software as training data for translators.

    python -m scripts.catalogues FOLDER... --target-language de --held-out pretix --output DATA

Each folder inside FOLDER is a project, such as an unpacked package; its catalogues of the target language are the PO
and MO files under LANGUAGE/LC_MESSAGES and those called LANGUAGE.po. DATA gets train.jsonl and validation.jsonl, with
the pairs of all other projects, and test_PROJECT.jsonl for each project held out. `lle train` reads such a folder. A
pair is there once; a source that a project held out has is in no other file, whatever its case. Of a source, the three
most frequent translations are kept; what was left untranslated, and what is mostly no words, is not.

Packages of Debian hold compiled catalogues (`dpkg-deb -x PACKAGE.deb FOLDER/NAME`), wheels of web software PO files.
"""

import argparse
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from modeling_lle.common.temporary import replacing_files
from modeling_lle.data import load_pairs

MOST = 3  # translations kept of a source
LONGEST = 600  # characters of a side
WRITING = ".lle-catalogues-"  # prefix of the folder in which the files are written
LETTERS = 0.4  # least share of letters in a source
_LETTER = re.compile(r"[^\W\d_]")

Pair = tuple[str, str]


def make_parser() -> argparse.ArgumentParser:
    """The arguments of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="a folder with a folder for each project"
    )
    parser.add_argument("--source-language", default="en", help="the language of the messages")
    parser.add_argument("--target-language", required=True, help="such as de")
    parser.add_argument("--held-out", nargs="*", default=[], metavar="PROJECT", help="projects for the test only")
    parser.add_argument("--validation", type=int, default=2000, metavar="PAIRS", help="pairs for the validation")
    parser.add_argument("--output", required=True, type=Path, metavar="DATA", help="the folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of the validation pairs")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Collects the pairs, writes them, and prints how many each project has; returns the exit status."""
    options = make_parser().parse_args(arguments)
    logging.getLogger("modeling_lle").setLevel(logging.ERROR)  # faulty entries are counted here
    projects = collect(options.folders, options.source_language, options.target_language)
    for name, own in sorted(projects.items(), key=lambda item: -len(item[1])):
        print(f"{len(own):8,} {name}{'  (held out)' if name in options.held_out else ''}")
    splits = split(projects, options.held_out, options.validation, options.seed)
    write(splits, options.output, options.source_language, options.target_language)
    print(", ".join(f"{name}: {len(pairs):,}" for name, pairs in splits.items()))
    return 0


def collect(folders: Iterable[Path], source_language: str, target_language: str) -> dict[str, list[Pair]]:
    """The pairs of each project, in the order of its files, with repetitions.

    Raises:
        FileNotFoundError: A folder does not exist, or none holds a catalogue of the language.
    """
    projects: dict[str, list[Pair]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"there is no folder {str(folder)!r}: give one that holds a folder for each project"
            )
        for project, file in catalogues(folder, target_language):
            try:
                rows = load_pairs(
                    file, source_language=source_language, target_language=target_language, skip_broken=True
                )
            except ValueError as error:  # no pairs in it, or no catalogue at all
                print(f"left out: {error}")
                continue
            pairs = zip(rows["source"][:], rows["target"][:], strict=True)
            projects.setdefault(project, []).extend(pair for pair in pairs if is_useful(*pair))
    if not projects:
        raise FileNotFoundError(
            f"no catalogue of {target_language!r} in {', '.join(map(str, folders))}: they are PO and MO files under "
            f"{target_language}/LC_MESSAGES, or called {target_language}.po"
        )
    return projects


def catalogues(folder: Path, language: str) -> Iterator[tuple[str, Path]]:
    """Yields the catalogues of a language in a folder of projects, with their project; PO before MO of one name."""
    found: set[Path] = set()
    for file in sorted(folder.rglob("*.[pm]o"), key=lambda path: (path.suffix == ".mo", path)):
        own = file.stem == language or file.stem.endswith(f"_{language}") or language in file.parent.parts[-2:]
        if own and file.is_file() and file.with_suffix("") not in found:
            found.add(file.with_suffix(""))
            yield file.relative_to(folder).parts[0], file


def is_useful(source: str, target: str) -> bool:
    """Whether a pair teaches something: words on both sides, translated, and of like length."""
    if max(len(source), len(target)) > LONGEST or source.strip() == target.strip():
        return False
    longer, shorter = max(len(source), len(target)), min(len(source), len(target))
    if longer > 3 * shorter + 20:
        return False
    return len(_LETTER.findall(source)) >= LETTERS * len(source.replace(" ", ""))


def split(
    projects: dict[str, list[Pair]], held_out: Sequence[str], validation: int, seed: int
) -> dict[str, list[Pair]]:
    """Splits pairs into "train", "validation" and "test_PROJECT" for each project held out.

    Raises:
        ValueError: A project to hold out is unknown, or too few pairs remain.
    """
    unknown = [name for name in held_out if name not in projects]
    if unknown:
        raise ValueError(f"no project {', '.join(unknown)}: there are {', '.join(sorted(projects))}")
    tests = {f"test_{name}": list(dict.fromkeys(projects[name])) for name in held_out}
    tested = {plain(source) for own in tests.values() for source, _ in own}
    counts: dict[str, Counter[Pair]] = defaultdict(Counter)
    for name, own in projects.items():
        if name not in held_out:
            for pair in own:
                if plain(pair[0]) not in tested:
                    counts[pair[0]][pair] += 1
    sources = list(counts)
    if len(sources) <= validation:
        raise ValueError(
            f"{len(sources)} sources remain, of which {validation} are to be held out: lower --validation"
        )
    drawn = set(np.random.default_rng(seed).choice(len(sources), validation, replace=False).tolist())
    parts: dict[str, list[Pair]] = {"train": [], "validation": []}
    for place, source in enumerate(sources):
        kept = [pair for pair, _ in counts[source].most_common(MOST)]
        parts["validation" if place in drawn else "train"] += kept[:1] if place in drawn else kept
    return {**parts, **tests}


def plain(source: str) -> str:
    """A source without case and accelerators (&, _)."""
    return re.sub(r"[&_](?=\w)", "", source).casefold().strip()


def write(splits: dict[str, list[Pair]], folder: Path, source_language: str, target_language: str) -> None:
    """Writes each split as JSON lines, all or none."""
    with replacing_files(folder, WRITING) as partial:
        for name, pairs in splits.items():
            lines = (
                json.dumps({source_language: source, target_language: target}, ensure_ascii=False)
                for source, target in pairs
            )
            (partial / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
