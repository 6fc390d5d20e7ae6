"""`vnpu key`."""

from __future__ import annotations

import io
import json

import pytest

from coordinator.admin.keyring import HASH, find, known_keys
from coordinator.cli.main import main


def test_a_new_key_opens_what_its_hash_stands_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert HASH.fullmatch(made["hash"])
    assert find(known_keys("", {"read": {"x": made["hash"]}}), made["key"]) is not None
    assert main(["key"]) == 0
    assert capsys.readouterr().out.startswith("key:  vnpu_")


def test_a_key_of_ones_own_is_hashed_and_a_short_one_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse battery staple\n"))
    assert main(["key", "--hash"]) == 0
    hashed = capsys.readouterr().out.strip()
    assert find(known_keys(hashed, {}), "correct horse battery staple") is not None
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
    assert main(["key", "--hash"]) == 2
