"""`sharded_linear` in vLLM's `--additional-config`: what `vnpu.yaml`'s key of that name becomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from coordinator.errors import ConfigError
from engine_patch.sharded_linear.window import PREFETCH

KEY = "sharded_linear"
UPSTREAM = "layer_sharding"
"""vllm-ascend's name for a list of layers, while it had them (until #11953)."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`layers`: patterns of layer names. `prefetch`: layers that are asked for ahead. `carrier`: how ranks that do not
    own a layer get at it; `auto`: `mapped` where they share host memory through the daemon, else `broadcast`.
    `deadline_s`: longest wait for another rank."""

    layers: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=64)]
    prefetch: Annotated[int, msgspec.Meta(ge=0, le=16)] = PREFETCH
    carrier: Literal["auto", "mapped", "broadcast"] = "auto"
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 30.0


def read(additional: object) -> Options | None:
    """The options in vLLM's `additional_config`; None: no layers are shared.

    Raises:
        ConfigError: a key is unknown or has a value that cannot be used; the message names it.
    """
    if not isinstance(additional, Mapping):
        return None
    given = additional.get(KEY, additional.get(UPSTREAM))
    if given in (None, [], ()):
        return None
    if isinstance(given, (list, tuple)):
        given = {"layers": list(given)}
    try:
        return msgspec.convert(given, Options)
    except msgspec.ValidationError as error:
        known = ", ".join(Options.__struct_fields__)
        raise ConfigError(f"--additional-config: {KEY}: {error}", remedy=f"its keys are {known}") from error
