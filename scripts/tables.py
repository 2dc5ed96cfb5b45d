"""Fills the tables of docs, README.md and model cards from results files.

python -m scripts.tables             rewrites the files (a second)
python -m scripts.tables --check     only lists outdated files, and fails if there are any
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from modeling_lle.common.temporary import replacing
from modeling_lle.evaluation.results import fill_tables

ROOT = Path(__file__).resolve().parent.parent


def make_parser() -> argparse.ArgumentParser:
    """The arguments of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a file is outdated")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the repository")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites the files, prints the outdated ones, and returns the exit status."""
    options = make_parser().parse_args(arguments)
    outdated = []
    for path in documents(options.root):
        text = path.read_text(encoding="utf-8")
        filled = fill_tables(text, options.root / "model_cards" / "results")
        if filled != text:
            outdated.append(path)
            if not options.check:
                with replacing(path) as partial:
                    partial.write_text(filled, encoding="utf-8")
    for path in outdated:
        print(f"{'out of date' if options.check else 'updated'}: {path.relative_to(options.root)}")
    return 1 if options.check and outdated else 0


def documents(root: Path) -> list[Path]:
    """Markdown files that may contain tables."""
    return [root / "README.md", *sorted(root.glob("docs/**/*.md")), *sorted(root.glob("model_cards/*.md"))]


if __name__ == "__main__":
    raise SystemExit(main())
