"""Tests the package on several versions of Python: installs it, runs the README's first example and the test suite.

python -m scripts.matrix                 3.10, 3.12 and 3.13, as far as found (about twenty minutes each)
python -m scripts.matrix 3.13 --quick    one version, without the test suite

Interpreters are found as `python3.13` on the PATH, or by uv or pyenv. Each gets an environment in build/matrix, with
the versions of constraints.txt. Needs only the standard library. The exit status is 0 if every requested version was
found and passed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.10", "3.12", "3.13")


def make_parser() -> argparse.ArgumentParser:
    """The arguments of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=VERSIONS, help="versions of Python, such as 3.12")
    parser.add_argument("--quick", action="store_true", help="leave out the test suite")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Tests each version, prints a line each, and returns the exit status."""
    options = make_parser().parse_args(arguments)
    outcomes = {version: try_version(version, options.quick) for version in options.versions}
    for version, outcome in outcomes.items():
        print(f"Python {version}: {outcome}")
    return 0 if all(outcome == "passed" for outcome in outcomes.values()) else 1


def try_version(version: str, quick: bool) -> str:
    """Installs and tests on one version; returns "passed", or the failed step."""
    interpreter = find_interpreter(version)
    if interpreter is None:
        return "no interpreter found"
    folder = ROOT / "build" / "matrix" / version
    shutil.rmtree(folder, ignore_errors=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "-c", "constraints.txt"]
    steps = {
        "environment": [interpreter, "-m", "venv", str(folder)],
        "install torch": [*install, "torch==2.13.0"],
        "install": [*install, ".[test]"],
        "import": [python, "-c", "import modeling_lle; print(modeling_lle.__version__)"],
        "demo": [python, "-m", "modeling_lle.cli.main", "demo", "--minutes", "0.5", "--output", str(folder / "demo")],
        "the README's example": [python, "-c", first_example().replace("runs/tiny", str(folder / "tiny"))],
        "tests": [python, "-m", "pytest", "-n", "2"],
    }
    for name, command in steps.items():
        if quick and name == "tests":
            continue
        print(f"--- Python {version}: {name}", flush=True)
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            return f"failed: {name}"
    return "passed"


def find_interpreter(version: str) -> str | None:
    """Interpreter of a version, from the PATH, uv or pyenv; None if there is none."""
    found = shutil.which(f"python{version}")
    if found is None and shutil.which("uv"):
        asked = subprocess.run(["uv", "python", "find", version], capture_output=True, text=True, check=False)
        found = asked.stdout.strip() or None if asked.returncode == 0 else None
    if found is None:
        versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
        own = sorted(versions.glob(f"{version}.*/bin/python{version}"))
        found = str(own[-1]) if own else None
    return found


def first_example() -> str:
    """First block of Python in the README."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0]


if __name__ == "__main__":
    sys.exit(main())
