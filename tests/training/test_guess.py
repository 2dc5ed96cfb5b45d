"""What can be trained on given files."""

import csv
from pathlib import Path

import pytest

from modeling_lle.training.guess import guess_task


def write(path: Path, columns: dict[str, list[str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


TICKETS = {
    "ticket_id": [f"T{number}" for number in range(30)],
    "subject": [f"the screen number {number} stays black" for number in range(30)],
    "status": ["open", "closed", "waiting"] * 10,
}


def test_columns_of_a_table_without_usual_names_are_told_by_their_values(tmp_path: Path) -> None:
    found = guess_task(write(tmp_path / "tickets.csv", TICKETS))
    assert (found.task, found.text_column, found.label_column) == ("text-classification", "subject", "status")


def test_of_several_columns_of_labels_the_one_with_a_usual_name_or_the_one_that_is_asked_for(tmp_path: Path) -> None:
    more = {**TICKETS, "priority": ["high", "low"] * 15}
    path = write(tmp_path / "tickets.csv", more)
    with pytest.raises(ValueError, match=r"may be in the columns status, priority: name one with label_column"):
        guess_task(path)
    assert guess_task(path, label_column="priority").label_column == "priority"
    write(path, {**more, "component": ["engine", "wheel", "door"] * 10})
    assert guess_task(path).label_column == "component"


def test_texts_without_labels_make_a_language_model(tmp_path: Path) -> None:
    found = guess_task(write(tmp_path / "notes.csv", {name: TICKETS[name] for name in ("ticket_id", "subject")}))
    assert (found.task, found.text_column) == ("text-generation", "subject")


def test_a_table_without_texts_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no column of .*numbers\.csv' looks like texts \(a, b\)"):
        guess_task(write(tmp_path / "numbers.csv", {"a": ["1", "2"], "b": ["3", "4"]}))


@pytest.mark.parametrize(
    ("name", "content", "task", "languages"),
    [
        ("labelled.csv", "Text,Intent\na,b\n", "text-classification", (None, None)),
        ("pairs.csv", "en,de\na,b\n", "translation", ("en", "de")),
        ("de.po", 'msgid ""\nmsgstr "Language: de\\n"\n', "translation", ("en", "de")),
        ("notes.txt", "some text", "text-generation", (None, None)),
    ],
)
def test_files_suit_a_task(
    tmp_path: Path, name: str, content: str, task: str, languages: tuple[str | None, str | None]
) -> None:
    (tmp_path / name).write_text(content)
    found = guess_task(tmp_path / name)
    assert (found.task, found.languages) == (task, languages)
