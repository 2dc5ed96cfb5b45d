import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_lle.evaluation import results as results_module
from modeling_lle.evaluation.results import fill_tables, format_value, read_results, this_command, write_results
from scripts import tables

METRICS = {"parameters": 9_300_000, "base_test_ppl": 85.412, "stream_test_ppl": 75.1}
ROWS = [{"method": "base", "ppl": 85.4}, {"method": "stream", "ppl": 75.1, "note": "gated"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model_cards" / "results"
    write_results(folder / "ptb.json", "lle evaluate ptb", METRICS, ROWS)
    write_results(folder / "wikitext-2.json", "lle evaluate wikitext-2", {"base_test_ppl": 90})
    return folder


def test_round_trip(folder: Path) -> None:
    results = read_results(folder / "ptb.json")
    assert results["command"] == "lle evaluate ptb"
    assert results["metrics"] == METRICS
    assert results["rows"] == ROWS
    assert results["environment"]["cpu"]
    assert results["environment"]["cores"] >= 1
    assert {"python", "torch", "transformers", "modeling_lle"} <= set(results["environment"])
    assert results["commit"] is None or len(results["commit"].removesuffix("-dirty")) == 40


def test_the_commit_is_dirty_by_code_and_not_by_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, result = tmp_path / "modeling_lle" / "results.py", tmp_path / "model_cards" / "results" / "ptb.json"
    monkeypatch.setattr(results_module, "__file__", str(module))
    for file in (module, result):
        file.parent.mkdir(parents=True)
        file.write_text("")
    assert results_module.commit() is None
    git = ("git", "-c", "user.name=me", "-c", "user.email=me@example.org", "-C", str(tmp_path))
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    clean = results_module.commit()
    assert clean is not None
    assert len(clean) == 40
    result.write_text("{}")
    assert results_module.commit() == clean
    module.write_text("x = 1")
    assert results_module.commit() == f"{clean}-dirty"


def test_an_interrupted_write_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    before = (folder / "ptb.json").read_text()
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_results(folder / "ptb.json", "another", {"x": 1})
    assert (folder / "ptb.json").read_text() == before


def test_read_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no results at"):
        read_results(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"command": ')
    with pytest.raises(ValueError, match=r"cut\.json is not valid JSON"):
        read_results(tmp_path / "cut.json")
    (tmp_path / "other.json").write_text(json.dumps({"command": "x", "rows": []}))
    with pytest.raises(ValueError, match="lacks commit, environment, metrics"):
        read_results(tmp_path / "other.json")


def test_numbers_must_be_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the metric 'ppl' is nan"):
        write_results(tmp_path / "x.json", "x", {"ppl": math.nan})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/x/bin/python", "/x/bin/lle", "evaluate", "a b"], "lle evaluate 'a b'"),
        (["/x/bin/python3", "-m", "scripts.evaluate", "m"], "python3 -m scripts.evaluate m"),
    ],
)
def test_command(monkeypatch: pytest.MonkeyPatch, argv: list[str], command: str) -> None:
    monkeypatch.setattr(sys, "orig_argv", argv)
    assert this_command() == command


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (82430, "82,430"), (1234.5, "1,234"), (0.87654, "0.8765"), (True, "True"), ("lstm", "lstm")],
)
def test_values(value: object, text: str) -> None:
    assert format_value(value) == text


def test_tables(folder: Path) -> None:
    text = (
        "before\n<!-- results:ptb,wikitext-2 base_test_ppl stream_test_ppl -->\nold\n\nold\n<!-- end -->\nbetween\n"
        "<!-- rows:ptb -->\n<!-- end -->\nafter\n"
    )
    filled = fill_tables(text, folder)
    assert filled.splitlines() == [
        "before",
        "<!-- results:ptb,wikitext-2 base_test_ppl stream_test_ppl -->",
        "|  | ptb | wikitext-2 |",
        "|:--|--:|--:|",
        "| base test ppl | 85.41 | 90 |",
        "| stream test ppl | 75.1 | - |",
        "<!-- end -->",
        "between",
        "<!-- rows:ptb -->",
        "| method | ppl | note |",
        "|:--|--:|--:|",
        "| base | 85.4 | - |",
        "| stream | 75.1 | gated |",
        "<!-- end -->",
        "after",
    ]
    assert fill_tables(filled, folder) == filled


def test_a_metric_within_a_line_is_filled(folder: Path) -> None:
    text = "from <!-- metric:ptb base_test_ppl -->?<!-- end --> to <!-- metric:ptb stream_test_ppl --><!-- end -->."
    filled = fill_tables(text, folder)
    assert "-->85.41<!-- end --> to <!-- metric:ptb stream_test_ppl -->75.1<!--" in filled
    assert fill_tables(filled, folder) == filled
    with pytest.raises(ValueError, match="unknown key in the metrics of ptb: 'base'"):
        fill_tables("<!-- metric:ptb base --><!-- end -->", folder)


def test_rows_are_chosen_and_spread(folder: Path) -> None:
    rows = [
        {"project": project, "method": method, "band": band, "bleu": bleu, "chrf": bleu + 1}
        for project, method, band, bleu in (
            ("p", "copy", "all", 1),
            ("p", "copy", "85-100 %", 2),
            ("p", "base", "all", 3),
            ("q", "base", "all", 4),
        )
    ]
    write_results(folder / "memory.json", "measure", {}, rows)

    def lines(keys: str) -> list[str]:
        return fill_tables(f"<!-- rows:memory {keys} -->\n<!-- end -->", folder).splitlines()[1:-1]

    assert lines("project=p band=all method bleu") == [
        "| method | bleu |",
        "|:--|--:|",
        "| copy | 1 |",
        "| base | 3 |",
    ]
    assert lines("project=p method bleu/band") == [
        "| method | all | 85-100 % |",
        "|:--|--:|--:|",
        "| copy | 1 | 2 |",
        "| base | 3 | - |",
    ]
    assert lines("project=q method bleu/band chrf/band") == [
        "| method | bleu, all | chrf, all |",
        "|:--|--:|--:|",
        "| base | 4 | 5 |",
    ]
    for wrong in ("project=p method bleu/bands", "projects=p method"):
        with pytest.raises(ValueError, match="unknown key in the rows of memory"):
            lines(wrong)


def test_table_errors(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"'base_tets_ppl' \(did you mean 'base_test_ppl'"):
        fill_tables("<!-- results:ptb base_tets_ppl -->\n<!-- end -->", folder)
    with pytest.raises(FileNotFoundError, match=r"tpb\.json"):
        fill_tables("<!-- results:tpb -->\nold\n<!-- end -->", folder)


def test_a_table_that_was_never_filled_waits_for_its_results(folder: Path) -> None:
    text = "<!-- results:later -->\n<!-- end -->"
    assert fill_tables(text, folder) == text


def test_script(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:ptb parameters -->\n<!-- end -->\n")
    arguments = ["--root", str(tmp_path)]
    assert tables.main([*arguments, "--check"]) == 1
    assert "out of date: README.md" in capsys.readouterr().out
    assert tables.main(arguments) == 0
    assert "| parameters | 9,300,000 |" in readme.read_text()
    assert tables.main([*arguments, "--check"]) == 0
