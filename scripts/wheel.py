"""Builds the source distribution and the wheel, checks what they hold, and tries the wheel outside the repository.

python -m scripts.wheel                 writes both into dist/ (two minutes; needs the extra `wheel`)
python -m scripts.wheel --output DIR    writes them somewhere else

The wheel is installed into a fresh environment in a temporary folder. There `lle --version` answers, and the first
example of the README trains its model (a minute); modeling_lle comes from the wheel, never from the repository.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

from scripts.matrix import first_example

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "modeling_lle"
# Runs before the example of the README, in the same process.
CHECK = """
import sys, modeling_lle

assert modeling_lle.__file__.startswith(sys.prefix), f"imported from {modeling_lle.__file__}, not from the wheel"
"""


def make_parser() -> argparse.ArgumentParser:
    """The arguments of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder of the two files (default: dist)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds, checks, tries, and moves the two files to the output folder; returns the exit status."""
    options = make_parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        built = build(folder / "built")
        for path in built:
            missing = differing_files(path)
            if missing:
                print(f"{path.name} lacks these files, or holds others: {', '.join(missing)}", file=sys.stderr)
                return 1
            links = relative_links(description(path))
            if links:
                print(f"the description of {path.name} has links that PyPI does not follow: {links}", file=sys.stderr)
                return 1
        run([sys.executable, "-m", "twine", "check", "--strict", *map(str, built)], folder)
        (wheel,) = (path for path in built if path.suffix == ".whl")
        try_wheel(wheel, folder)
        options.output.mkdir(parents=True, exist_ok=True)
        for path in built:
            print(f"tried: {shutil.copy2(path, options.output)}")
    return 0


def build(folder: Path) -> list[Path]:
    """Builds the source distribution, and the wheel from it, with the setuptools of this environment.

    Args:
        folder: Where the two files go.

    Returns:
        Their paths.
    """
    # Without isolation nothing is downloaded; `python -m build` by itself works as well.
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)], ROOT)
    return sorted(folder.iterdir())


def differing_files(path: Path) -> list[str]:
    """The files of the package that a wheel or source distribution lacks, or holds with another content.

    A symbolic link counts as the file that it leads to: an archive must hold that content, not the link.
    """
    contents = read_wheel(path) if path.suffix == ".whl" else read_source(path)
    files = (file for file in (ROOT / PACKAGE).rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    expected = {file.relative_to(ROOT).as_posix(): file.read_bytes() for file in files}
    return sorted(name for name, content in expected.items() if contents.get(name) != content)


def description(path: Path) -> str:
    """The text that PyPI shows of a wheel or source distribution."""
    contents = read_wheel(path) if path.suffix == ".whl" else read_source(path)
    names = (name for name in contents if name == "PKG-INFO" or name.endswith(".dist-info/METADATA"))
    return contents[next(names)].decode().partition("\n\n")[2]


def relative_links(text: str) -> list[str]:
    """The links and pictures of a Markdown text that lead to files beside it."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match("https?://|mailto:", link)]


def read_wheel(path: Path) -> dict[str, bytes]:
    """The files of a wheel by their names."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_source(path: Path) -> dict[str, bytes]:
    """The regular files of a source distribution by their names below its one folder."""
    contents = {}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                contents[member.name.partition("/")[2]] = file.read()
    return contents


def try_wheel(wheel: Path, folder: Path) -> None:
    """Installs a wheel into a new environment and uses it there, outside the repository.

    Args:
        wheel: The file to install.
        folder: An empty place for the environment and the model.
    """
    environment = folder / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    # Installing torch again would take minutes. These lines append the packages of the running environment to the
    # path, after those of the new one; .pth files there, such as that of an editable modeling_lle, are not read.
    packages = sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)})
    outer = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (Path(packages) / "outer.pth").write_text("\n".join(outer) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    run([*pip, str(wheel)], folder)

    away = folder / "away"
    away.mkdir()
    run([str(environment / "bin" / "lle"), "--version"], away)
    run([str(python), "-c", CHECK + first_example()], away)


def run(command: Sequence[str], folder: Path) -> None:
    """Runs a command in a folder; the repository is not on its path."""
    values = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    print("---", " ".join(command).splitlines()[0], flush=True)
    subprocess.run(command, cwd=folder, env=values, check=True)


if __name__ == "__main__":
    sys.exit(main())
