"""What a model remembers of its data."""

from pathlib import Path

import pytest

from modeling_lle.common.remembered import remembered


def test_the_section_of_the_data_is_remembered(tmp_path: Path) -> None:
    assert remembered(tmp_path) == remembered(tmp_path / "none") == {}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("task: translation\ndata: {text_column: body, label_column: null, sample_by: document}\n")
    assert remembered(str(tmp_path)) == {"text_column": "body", "sample_by": "document"}
    recipe.write_text("model: {}\n")
    assert remembered(tmp_path) == {}


@pytest.mark.parametrize("content", [b"data: {", b"- a\n- b\n", b"data: text\n", b"data: caf\xe9\n"])
def test_a_damaged_recipe_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"the recipe .*recipe.yaml' is damaged"):
        remembered(tmp_path)
