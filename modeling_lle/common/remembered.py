"""What a saved model remembers of the data that it was trained on: the section `data` of its recipe.

Notable: this is apart from recipes, whose import takes seconds, so that every command can ask.
"""

from pathlib import Path
from typing import Any

import yaml

from .paths import may_be_on_hub

RECIPE = "recipe.yaml"


def remembered(model_path: str | Path) -> dict[str, Any]:
    """The values of the section `data` of the recipe that a model was trained with.

    Args:
        model_path: Folder, or name on the Hub.

    Returns:
        The values, such as `text_column`; none of them is None. {} without a recipe.

    Raises:
        ValueError: The recipe is damaged.
    """
    path = Path(model_path) / RECIPE
    if may_be_on_hub(model_path):
        from transformers.utils import cached_file

        missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        found = cached_file(str(model_path), RECIPE, **missing)
        path = Path(found) if found else path
    if not path.is_file():
        return {}
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        data = recipe.get("data") or {}
        return {name: value for name, value in data.items() if value is not None}
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
        what = "no mapping" if isinstance(error, AttributeError) else error
        raise ValueError(
            f"the recipe {str(path)!r} is damaged: {what}. Mend it, or remove it and name columns and languages"
        ) from error
