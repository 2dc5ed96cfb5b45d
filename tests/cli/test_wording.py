"""Messages of the library in the words of the command line."""

import pytest

from modeling_lle.cli.wording import for_command_line


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("go on with resume=True, or", "go on with --resume, or"),
        ("pass new_labels=True if that is meant", "pass --new-labels if that is meant"),
        ("name the text column with text_column; its", "name the text column with --text-column; its"),
        ("no row has the out_of_scope label 'x'", "no row has the label of --out-of-scope-label, 'x'"),
        ("limit_tokens must be at least 1", "--limit-tokens must be at least 1"),
        ("a column 'source_column' of data.source_column", "a column 'source_column' of data.source_column"),
        ("Nothing was forgotten; pass missing_ok=True if that is fine", "Nothing was forgotten"),
    ],
)
def test_options_replace_arguments(message: str, said: str) -> None:
    assert for_command_line(message) == said
