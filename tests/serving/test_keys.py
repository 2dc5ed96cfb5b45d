"""Keys name tenants, and a file of them says what is wrong with it."""

from pathlib import Path

import pytest

from modeling_lle.serving.keys import LOCAL, Keys

ANN, BOB = "key-of-ann-0123456789", "key:of:bob-0123456789"


def test_a_file_of_keys_is_read(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n\n{ANN}: ann\n{BOB} : bob\n")
    keys = Keys.read(path)
    assert [keys.owner(key) for key in (ANN, BOB, "other", "", None)] == ["ann", "bob", None, None, None]
    assert keys.tenants == ["ann", "bob"]
    assert ANN not in str(vars(keys))


def test_without_keys_there_is_one_tenant() -> None:
    assert Keys().owner(None) == Keys().owner("any") == LOCAL


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no key"),
        (ANN, "KEY: TENANT"),
        (f"{ANN}: ann\n{ANN}: bob", "twice"),
        ("short: ann", "16 characters"),
        (f"{ANN}: ../up", "cannot name a tenant"),
        (f"{ANN}: .hidden", "cannot name a tenant"),
        (f"{ANN}: ann\n{BOB}: Ann", "capitals only"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        Keys.read(path)
