"""The seal: it is of the bytes and of the user, and nobody else can read the secret."""

import os
from pathlib import Path

import pytest

from modeling_lle.bank.seal import _secret, seal


def test_is_of_the_bytes_and_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, data in (("one", b"1"), ("same", b"1"), ("other", b"2")):
        (tmp_path / name).write_bytes(data)
    found = []
    for user in ("ann", "bob"):
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / user))
        found += [seal(tmp_path / name) for name in ("one", "same", "other")]
        secret = tmp_path / user / "modeling_lle" / "secret"
        assert os.name == "nt" or secret.stat().st_mode & 0o77 == 0
        _secret.cache_clear()  # another process
        assert seal(tmp_path / "one") == found[-3] == found[-2]
        assert list(secret.parent.iterdir()) == [secret]
    assert len(set(found)) == 4


def test_without_a_place_for_the_secret_it_lasts_as_long_as_the_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    secret = _secret(tmp_path / "file" / "secret")
    assert len(secret) == 32
    assert _secret(tmp_path / "file" / "secret") == secret != _secret(tmp_path / "secret")
