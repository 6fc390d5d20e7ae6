"""What a user of `vnpu demo` sees when something goes wrong in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.cli import demo as demo_module
from coordinator.cli.main import main

FAULTS: list[Exception] = [
    TimeoutError("after 60 s not yet: every model is resident or offloaded"),
    ExceptionGroup("unhandled errors in a TaskGroup", [ConnectionError("the engine\nis gone")]),
    ValueError("not enough values to unpack"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_whatever_fails_is_one_line_and_a_log(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(workspace: object, console: object) -> None:
        raise fault

    monkeypatch.setattr(demo_module, "_prepare", fail)
    assert main(["demo", "--dir", str(tmp_path / "new")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    leaf = fault.exceptions[0] if isinstance(fault, ExceptionGroup) else fault
    log = tmp_path / "new" / "demo.log"
    assert line.startswith(f"vnpu: the demo broke off: {type(leaf).__name__}: {' '.join(str(leaf).split())} (")
    assert str(log) in line
    assert "Traceback" in log.read_text()
