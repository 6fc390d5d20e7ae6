"""Weights between two processes, over TCP and over torch.distributed (gloo), and what becomes of a process whose source
is killed or falls silent in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.source_process import LENGTHS
from tests.helpers.weights import LOCAL, Directory, Engine, Rank, dialler
from tests.helpers.wires import meanwhile
from transfer.netloader import client as client_module
from transfer.netloader import intake, pull, ways
from transfer.netloader.client import Client, Streamed, StreamFailed
from transfer.netloader.plan import Peer
from transfer.transports.channel import Channel


@contextmanager
def source_process(way: str, last: int = -1) -> Iterator[tuple[subprocess.Popen[str], Peer]]:
    command = [sys.executable, "-m", "tests.helpers.source_process", way, str(last)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as child:
        try:
            assert child.stdout is not None
            yield child, Peer(name="A", host=LOCAL, port=int(child.stdout.readline()))
        finally:
            child.kill()


def fetch(starter: Rank, directory: Directory, way: str) -> Streamed:
    """From A that way, over TCP from everybody else."""

    def agree(peer: Peer, channel: Channel) -> None:
        if peer.name == "A" and way == "torch":
            ways.meet(channel)

    me = Peer(name="me", host=LOCAL, port=0, ticket=(1.0, "me"), whole=False)
    return Client(me, starter.identity, starter.addresses, directory, dialler(), agree=agree).run(60.0)


def pairs() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "vnpu-pair"]


def test_torch_between_two_processes():
    with source_process("torch") as (_, peer):
        starter = Rank(LENGTHS)
        streamed = fetch(starter, Directory(peer), "torch")
    assert starter.content == Rank(LENGTHS, seed=1).content
    assert streamed.reasons == {}
    assert pairs() == []


@pytest.mark.parametrize("way", ["tcp", "torch"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_killed_or_falls_silent_is_replaced_by_another(
    how: signal.Signals, way: str, monkeypatch: pytest.MonkeyPatch
):
    """A block that is due never comes: the connection ends with the process, or with its deadline; what has landed
    stays, and the rest comes from elsewhere."""
    monkeypatch.setattr(intake, "FRAME_S", 2.0)
    monkeypatch.setattr(pull, "OFFER_S", 5.0)
    with source_process(way, last=5) as (child, peer):
        starter, directory = Rank(LENGTHS), Directory(peer)
        fetching = meanwhile(lambda: fetch(starter, directory, way))
        assert child.stdout is not None
        assert child.stdout.readline() == "there\n"
        with Engine("B", Rank(LENGTHS, seed=1), directory):
            directory.remove("A")
            child.send_signal(how)
            streamed = fetching()
    assert starter.content == Rank(LENGTHS, seed=1).content
    assert streamed.blocks == {"A": 5, "B": 8}


def test_nobody_is_left(monkeypatch: pytest.MonkeyPatch):
    """No hang: it says why, and nobody writes any more."""
    monkeypatch.setattr(client_module, "EMPTY_S", 0.3)
    with source_process("torch", last=5) as (child, peer):
        starter, directory = Rank(LENGTHS), Directory(peer)
        fetching = meanwhile(lambda: fetch(starter, directory, "torch"))
        assert child.stdout is not None
        assert child.stdout.readline() == "there\n"
        child.kill()
        with pytest.raises(StreamFailed, match=r"A: \S+"):  # that it broke, or that it cannot be reached any more
            fetching()
    assert not any(thread.name == "vnpu-pull" for thread in threading.enumerate())
