"""Results files: measurements in JSON, with command, commit and machine.

Notable: files are written atomically; tables in README, docs and model cards are filled from them. A table stands
between two comments; the first one selects its content:

    <!-- results:ptb,wikitext-2 base_test_ppl stream_test_ppl -->   these metrics of the two files, a column for each
    <!-- results:ptb -->                                            all metrics of ptb.json
    <!-- rows:history method ppl -->                                two columns of the rows of history.json
    <!-- rows:history dataset=ptb method ppl -->                    the same of the rows with this value
    <!-- rows:translation-memory method bleu/band -->               the values of bleu, a column for each band
    <!-- end -->                                                    ends each of them

Within a line, `<!-- metric:ptb base_test_ppl -->74.12<!-- end -->` holds one metric of a file.
"""

import importlib.metadata
import json
import math
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from ..common.machine import cores, processor
from ..common.temporary import replacing
from ..common.terminal import counted
from ..configuration_fields import check_keys
from ..data.sources import Source, describe

_PACKAGES = ("torch", "transformers", "modeling_lle", "numba", "flash-linear-attention")
_SHOWN = 3  # names of files in a message
_KEYS = ("command", "commit", "environment", "metrics", "rows")
_TABLE = re.compile(r"(<!-- (results|rows):(\S+)((?: \S+)*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_METRIC = re.compile(r"(<!-- metric:(\S+) (\S+) -->)[^<\n]*(<!-- end -->)")


def write_results(
    path: str | Path, command: str, metrics: Mapping[str, float], rows: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Writes a results file atomically.

    Args:
        path: JSON file; its folder is made.
        command: Command that reproduces it.
        metrics: Finite numbers by flat names.
        rows: Measurements with more than one dimension.

    Returns:
        Content of the file.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise ValueError(f"the metric {name!r} is {value}: a results file holds finite numbers")
    results = {
        "command": command,
        "commit": commit(),
        "environment": environment(),
        "metrics": dict(metrics),
        "rows": [dict(row) for row in rows or []],
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return results


def read_results(path: str | Path) -> dict[str, Any]:
    """Content of a results file: `command`, `commit`, `environment`, `metrics` and `rows`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no results at {path}: run the command that writes them first")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    missing = [key for key in _KEYS if key not in results]
    if missing:
        raise ValueError(f"{path} is not a results file: it lacks {', '.join(missing)}")
    return results


def write_release(path: str | Path, model_path: str | Path, measured: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Writes the results file of a released recipe: size, training time, and perplexities per word.

    "bank" is stream and bank together, if a bank was attached; "all" includes the update.

    Args:
        path: JSON file.
        model_path: Folder written by `lle train`, with metrics.json.
        measured: Result of `evaluate_folder` for the folder.
        split: Evaluated split, for the names of metrics.
    """
    trained = json.loads((Path(model_path) / "metrics.json").read_text(encoding="utf-8"))
    values = measured["metrics"]
    updated, banked = "update_word_ppl" in values, "bank_word_ppl" in values
    sides = {"base": "base", "stream": "stream" if updated or banked else "history"}
    if banked:
        sides["bank"] = "both" if updated else "history"
    if updated:
        sides |= {"update": "update", "all": "history"}
    metrics = {
        "parameters": trained["parameters"],
        **train_minutes(model_path),
        **{f"{name}_{split}_ppl": values[f"{side}_word_ppl"] for name, side in sides.items()},
        "tokens_per_second": values["tokens_per_second"],
    }
    return write_results(path, this_command(), metrics)


def train_minutes(model_path: str | Path) -> dict[str, float]:
    """`train_minutes` of a folder written by `lle train`; empty if unknown, as for some resumed runs."""
    path = Path(model_path) / "metrics.json"
    trained = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {"train_minutes": trained["train_minutes"]} if "train_minutes" in trained else {}


def describe_files(rows: Dataset, source: Source) -> str:
    """Names what rows were read from: the files if they are known, else the source, with its split."""
    if "file" not in rows.column_names:
        return f"{describe(source)}{f', split {rows.split}' if rows.split else ''}"
    files = rows.unique("file")
    shown = ", ".join(map(str, files[:_SHOWN]))
    more = f" and {counted(len(files) - _SHOWN, 'more file')}" if len(files) > _SHOWN else ""
    return f"{shown}{more}"


def this_command() -> str:
    """The current command as typed."""
    program, *rest = sys.orig_argv
    if rest and Path(rest[0]).name == "lle":
        program, *rest = rest
    return shlex.join([Path(program).name, *rest])


def commit() -> str | None:
    """Commit of this package, with "-dirty" if files other than results differ; None outside of its repository."""
    folder = Path(__file__).parent
    if "site-packages" in folder.parts:
        return None

    def git(*arguments: str) -> str:
        asked = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
        return asked.stdout.strip()

    try:
        changed = git("diff", "--name-only", "HEAD", "--", ":(top)", ":(top,exclude)model_cards/results")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def environment() -> dict[str, Any]:
    """Machine and versions that measurements depend on."""
    values: dict[str, Any] = {"cpu": processor(), "cores": cores()}
    if torch.cuda.is_available():
        values["gpu"] = torch.cuda.get_device_name()
    values["python"] = platform.python_version()
    for package in _PACKAGES:
        try:
            values[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return values


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown table; first column aligned left, others right.

    Example:
        >>> print(markdown_table(["", "ppl"], [["base", 85.4213], ["tokens", 82430]]))
        |  | ppl |
        |:--|--:|
        | base | 85.42 |
        | tokens | 82,430 |
    """
    lines = [header, *rows]
    table = ["| " + " | ".join(map(format_value, line)) + " |" for line in lines]
    table.insert(1, "|:--|" + "--:|" * (len(header) - 1))
    return "\n".join(table)


def format_value(value: Any) -> str:
    """Formats a value: numbers to four digits with thousands separators, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def fill_tables(text: str, folder: str | Path) -> str:
    """Fills the tables of a Markdown text from the results files in `folder`.

    A table without a line waits for its first results.
    """

    def fill(match: re.Match[str]) -> str:
        begin, kind, names, keys, old, end = match.groups()
        if not old and not any((Path(folder) / f"{name}.json").exists() for name in names.split(",")):
            return match[0]
        files = {name: read_results(Path(folder) / f"{name}.json") for name in names.split(",")}
        table = _metrics_table if kind == "results" else _rows_table
        return f"{begin}{table(files, keys.split())}\n{end}"

    def fill_metric(match: re.Match[str]) -> str:
        begin, name, key, end = match.groups()
        metrics = read_results(Path(folder) / f"{name}.json")["metrics"]
        check_keys([key], metrics, f"the metrics of {name}")
        return f"{begin}{format_value(metrics[key])}{end}"

    return _METRIC.sub(fill_metric, _TABLE.sub(fill, text))


def _metrics_table(files: dict[str, dict[str, Any]], keys: list[str]) -> str:
    known = {key: None for results in files.values() for key in results["metrics"]}  # ordered set
    check_keys(keys, known, f"the metrics of {', '.join(files)}")
    rows = [[_label(key), *(results["metrics"].get(key) for results in files.values())] for key in keys or known]
    return markdown_table(["", *files], rows)


def _rows_table(files: dict[str, dict[str, Any]], keys: list[str]) -> str:
    rows = [row for results in files.values() for row in results["rows"]]
    known = {key: None for row in rows for key in row}
    chosen = dict(key.split("=", 1) for key in keys if "=" in key)
    keys = [key for key in keys if "=" not in key]
    check_keys([*chosen, *(name for key in keys for name in key.split("/"))], known, f"the rows of {', '.join(files)}")
    rows = [row for row in rows if all(str(row.get(key)) == value for key, value in chosen.items())]
    rows, columns = _spread(rows, keys or list(known))
    return markdown_table([_label(key) for key in columns], [[row.get(key) for key in columns] for row in rows])


def _spread(rows: list[dict[str, Any]], keys: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows in which a key "bleu/band" has become a column for each band, and their columns.

    Rows that agree in the keys without a slash become one.
    """
    spread = [key.split("/") for key in keys if "/" in key]
    if not spread:
        return rows, keys
    plain = [key for key in keys if "/" not in key]
    joined: dict[tuple[Any, ...], dict[str, Any]] = {}
    columns = dict.fromkeys(plain)
    for row in rows:
        own = joined.setdefault(tuple(row.get(key) for key in plain), {key: row.get(key) for key in plain})
        own |= {_column(name, row.get(by), spread): row.get(name) for name, by in spread}
    for name, by in spread:
        columns |= dict.fromkeys(_column(name, row.get(by), spread) for row in rows)
    return list(joined.values()), list(columns)


def _column(name: str, value: Any, spread: list[list[str]]) -> str:
    """Name of a column: the value alone, unless there are several measures."""
    return str(value) if len(spread) == 1 else f"{name}, {value}"


def _label(key: str) -> str:
    return key.replace("_", " ")
