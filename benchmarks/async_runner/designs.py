"""The designs that are compared, each as what one engine has and its neighbour has not."""

from __future__ import annotations

from typing import Any

import msgspec

ARGS: dict[str, Any] = {"dtype": "bfloat16", "max_model_len": 1024, "max_num_seqs": 16, "block_size": 32}
EAGER: dict[str, Any] = {**ARGS, "enforce_eager": True}
COMPILED: dict[str, Any] = {**ARGS, "enforce_eager": False}


class Side(msgspec.Struct, frozen=True):
    """One engine: `async_runner` and `engine_args` of vnpu.yaml. `plugin`: the module of this package that its
    processes load: `stream` runs its steps in a thread, `device` replaces its forward pass, `at_once` has
    its outputs sent without another thread."""

    async_runner: bool | None
    engine_args: dict[str, Any]
    plugin: str | None = None


class Design(msgspec.Struct, frozen=True):
    """`ours` is compared with `theirs`; the models are named as in `setting.MODELS`."""

    name: str
    ours: Side
    theirs: Side
    models: tuple[str, ...]


SYNC = Side(False, EAGER)
BOTH = ("5mb", "200mb")
EMULATED = Side(True, EAGER, plugin="device"), Side(False, EAGER, plugin="device")
DESIGNS = (
    Design("default", Side(None, EAGER), SYNC, BOTH),
    Design("scheduling", Side(True, EAGER), SYNC, BOTH),
    Design("at_once", Side(True, EAGER, plugin="at_once"), SYNC, BOTH),
    Design("thread", Side(True, EAGER, plugin="stream"), SYNC, ("5mb",)),
    Design("compiled_scheduling", Side(True, COMPILED), Side(False, COMPILED), ("5mb",)),
    Design("compiled", Side(False, COMPILED), SYNC, ("5mb",)),
)
"""`default`: what is on where the configuration says nothing. `scheduling`: vLLM's own asynchronous scheduling, as
`async_runner: true` switches it on. `at_once`: the same without vLLM's thread for outputs. `thread`: beside vLLM's,
forward pass and sampling in a thread of the worker.
`compiled_scheduling`: `scheduling` with a compiled forward pass on both sides. `compiled`: a compiled forward pass
alone, which is no runner: how much of a step was Python's dispatch.
`EMULATED` is not among them: what it answers means nothing (`emulated.py`)."""
