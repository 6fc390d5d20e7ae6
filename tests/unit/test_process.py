"""What a process sets for itself."""

from __future__ import annotations

import logging
import subprocess
import sys

from coordinator.process import FORMAT, YOUNG, Lines

SETS = """
import gc, logging, resource
from coordinator.process import log_to_stderr, raise_file_limit, settle
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
log_to_stderr("INFO")
raise_file_limit()
settle()
logging.getLogger("a.b").info("said %s", 1)
logging.getLogger("a.b").debug("not said")
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard, gc.get_freeze_count() > 1000, gc.get_threshold()[0])
"""


def test_open_files_the_collector_and_the_log() -> None:
    done = subprocess.run([sys.executable, "-c", SETS], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "True", str(YOUNG)]
    assert done.stderr.endswith(" INFO a.b: said 1\n")
    assert done.stderr.count("\n") == 1


def test_the_time_of_day_is_the_librarys() -> None:
    ours, theirs = Lines(FORMAT), logging.Formatter(FORMAT)
    for created in (0.0, 0.9994, 1_700_000_000.5, 1_700_000_000.7, 1_700_000_001.0):
        record = logging.makeLogRecord({"created": created, "msecs": created % 1 * 1000, "msg": "x", "name": "n"})
        assert ours.format(record) == theirs.format(record)


def test_lines_are_the_librarys_with_a_traceback_too() -> None:
    ours, theirs = Lines(FORMAT), logging.Formatter(FORMAT)
    try:
        raise ValueError("x")
    except ValueError:
        fields = {"msg": "said %s", "args": (1,), "name": "a.b", "levelname": "INFO", "exc_info": sys.exc_info()}
    for made in (fields, {**fields, "exc_info": None}, {**fields, "exc_info": None, "stack_info": "here"}):
        record, other = logging.makeLogRecord(made), logging.makeLogRecord(made)
        other.created, other.msecs = record.created, record.msecs
        assert ours.format(record) == theirs.format(other)
