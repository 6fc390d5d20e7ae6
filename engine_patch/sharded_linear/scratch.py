"""Pages for weights on their way: as they come from the checkpoint, before they are processed and find their place."""

from __future__ import annotations

import functools
from typing import Any

from engine_patch.memory import Hands
from engine_patch.region import Region
from engine_patch.sharded_linear.series import Unshareable
from native import _native
from native.protocol import Kind

SCRATCH_AT = 0x3800_0000_0000
SPAN = 1 << 39
CALL_S = 300.0
SLACK = 1 << 20


class Scratch:
    """See the module."""

    def __init__(self, hands: Hands) -> None:
        weights = hands.weights
        self._back = weights.arena
        self._region = Region(hands.driver, hands.client, weights.device, Kind.WEIGHTS, weights.chunk, SCRATCH_AT, SPAN)

    def divert(self, layer: Any) -> None:
        """The layer is about to create its weights (`quant_method.create_weights`): here."""
        method = layer.quant_method
        create = method.create_weights

        @functools.wraps(create)
        def here(*args: Any, **kwargs: Any) -> None:
            del method.create_weights
            arena = self._region.arena
            room = layer.input_size * layer.output_size * layer.params_dtype.itemsize + SLACK
            self._region.populate(arena, arena.top + room, CALL_S)
            _native.activate(arena)
            try:
                create(*args, **kwargs)
            finally:
                _native.activate(self._back)

        method.create_weights = here

    def close(self) -> None:
        """Everything has moved out: give the pages back.

        Raises:
            Unshareable: something has not.
        """
        arena = self._region.arena
        if arena.live_blocks:
            raise Unshareable(
                f"sharded_linear: {arena.live_bytes} bytes of shared layers were not processed after loading",
                remedy="leave those layers out, and report this model",
            )
        self._region.drop(self._region.indices, CALL_S)
