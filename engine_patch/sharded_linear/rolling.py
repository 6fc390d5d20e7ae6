"""The carrier for ranks with separate memory: each layer's weights are broadcast by their owner shortly before they are
needed, into a rolling window of buffers (`window`).

While step g computes, step g + prefetch is under way. A layer's owner has its weights and computes at once; its own
sending it waits for one step later. So a rank that computes and one that still receives share a machine's cores in
turns, where both would wait for the slower of them. Ranks must walk the layers in the same order, as they do in
tensor-parallel forward passes; who does not is told so with layer and rank, never by a hang: each image carries its
series and step, and every wait has a deadline.

Hooks on the modules do it, so it needs eager mode: inside a compiled graph no hook runs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from engine_patch.sharded_linear import image
from engine_patch.sharded_linear.group import OutOfStep
from engine_patch.sharded_linear.image import Layout
from engine_patch.sharded_linear.series import Series, Unshareable
from engine_patch.sharded_linear.tensors import put, tensors_of


class Broadcast(Protocol):
    """One under way. Images are flat, uint8."""

    def wait(self, timeout_s: float) -> bool: ...


class Carrier(Protocol):
    """As `group.Line`."""

    def send(self, image: torch.Tensor, owner: int) -> Broadcast: ...


class Rolling:
    """One series on one rank. Called from the thread that runs the model."""

    def __init__(self, series: Series, me: int, carrier: Carrier, deadline_s: float) -> None:
        self.series = series
        self._window = series.window
        self._me = me
        self._carrier = carrier
        self._deadline_s = deadline_s
        self._id = zlib.crc32(series.name.encode())
        self._layout = Layout(0, ())
        self._modules: dict[int, torch.nn.Module] = {}
        self._homes: dict[int, torch.Tensor] = {}
        self._buffers: list[torch.Tensor] = []
        self._away: dict[int, tuple[Broadcast, torch.Tensor]] = {}
        self._step = 0
        self._hooks: list[Any] = []

    # ---- loading

    def adopt(self, position: int, layer: torch.nn.Module) -> None:
        """This layer's weights are processed: its owner moves them into an image, the others let go of them.

        Raises:
            Unshareable: they are no ordinary tensors any more, or not of the form of the others.
        """
        name = self.series.layers[position]
        tensors = tensors_of(layer)
        if not tensors:
            raise Unshareable(
                f"{name}: its kernel hides the weight", remedy="leave it out, or share by carrier: mapped"
            )
        try:
            found = image.layout(tensors)
        except ValueError as error:
            raise Unshareable(f"{name}: {error}", remedy="leave it out") from error
        if self._modules and self._layout != found:
            raise Unshareable(f"{name} became unlike {self.series.layers[0]} when processed", remedy="leave it out")
        self._layout = found
        self._modules[position] = layer
        if self._window.owner(position) == self._me:
            home = torch.zeros(found.size, dtype=torch.uint8)
            for key, place in image.views(home, found).items():
                place.copy_(tensors[key])
            self._homes[position] = home
        for key, tensor in tensors.items():
            put(layer, key, torch.empty(0, dtype=tensor.dtype))

    def open(self) -> None:
        """All layers are adopted: make the buffers, take part in forward passes from now on.

        Raises:
            Unshareable: a layer was not.
        """
        missing = [name for i, name in enumerate(self.series.layers) if i not in self._modules]
        if missing:
            raise Unshareable(f"{', '.join(missing)}: was not processed after loading", remedy="report this model")
        count = self._window.buffers(self._me)
        self._buffers = [torch.empty(self._layout.size, dtype=torch.uint8) for _ in range(count)]
        for position, module in self._modules.items():
            self._hooks.append(module.register_forward_pre_hook(self._before(position)))
            self._hooks.append(module.register_forward_hook(self._after(position)))

    @property
    def bytes(self) -> int:
        """What this rank keeps of the series: owned layers, and the window."""
        return sum(each.nbytes for each in (*self._homes.values(), *self._buffers))

    @property
    def layer_bytes(self) -> int:
        return self._layout.size

    @property
    def window_bytes(self) -> int:
        """What the buffers will take."""
        return self._window.buffers(self._me) * self.layer_bytes

    # ---- between forward passes

    def fill(self) -> None:
        """Begin to fill an empty window. All ranks do."""
        for step in self._window.opening(self._step):
            self._ask(step)

    def drain(self) -> None:
        """Until nothing is under way: memory may go. The window is empty afterwards, and what this rank owns is as it
        was processed, without a stamp. Raises OutOfStep."""
        for step in sorted(self._away):
            self._landed(step)
        for home in self._homes.values():
            image.stamp(home, 0, 0)

    def close(self) -> None:
        """No part in forward passes any more. Idempotent."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    # ---- in a forward pass

    def _before(self, position: int) -> Callable[..., None]:
        def reach(module: torch.nn.Module, args: object) -> None:
            self.reach(position)
            self.wait(position)

        return reach

    def _after(self, position: int) -> Callable[..., None]:
        def leave(module: torch.nn.Module, args: object, output: object) -> None:
            self._empty(position)
            self._step += 1

        return leave

    def reach(self, position: int) -> None:
        """A forward pass comes to this layer: ask for the one `prefetch` steps ahead, once what this rank sent in the
        step before is gone. Raises OutOfStep."""
        expected = self._window.position(self._step)
        if position != expected:
            names = self.series.layers
            raise OutOfStep(
                f"rank {self._me} came to {names[position]} (step {self._step}), {names[expected]} was next",
                remedy="the layers of a series must run in order, once each; leave this one out of sharded_linear",
            )
        if self._step - 1 in self._away:
            self._landed(self._step - 1)
        self._ask(self._window.asked_by(self._step))

    def wait(self, position: int) -> None:
        """Make the layer's weights ready. Raises OutOfStep where they do not come in time, or others do."""
        own = self._window.owner(position) == self._me
        place = self._homes[position] if own else self._landed(self._step)
        for key, view in image.views(place, self._layout).items():
            put(self._modules[position], key, view)

    def _empty(self, position: int) -> None:
        for key, part in self._layout.parts:
            put(self._modules[position], key, torch.empty(0, dtype=part.dtype))

    def _ask(self, step: int) -> None:
        position = self._window.position(step)
        owner = self._window.owner(position)
        if owner == self._me:
            place = self._homes[position]
            image.stamp(place, self._id, step)
        else:
            place = self._buffers[self._window.turn(step, self._me) % len(self._buffers)]
        self._away[step] = self._carrier.send(place, owner), place

    def _landed(self, step: int) -> torch.Tensor:
        """The step's image, come or sent. One that is not stays under way, since gloo may read or write it any time:
        no later `drain` lets its memory go. Raises OutOfStep."""
        sent, place = self._away[step]
        position = self._window.position(step)
        owner, name = self._window.owner(position), self.series.layers[position]
        if not sent.wait(self._deadline_s):
            whom = self._others() if owner == self._me else f"rank {owner}, its owner"
            raise OutOfStep(
                f"rank {self._me} waited {self._deadline_s:g} s at {name} (step {step}) for {whom}",
                remedy="a rank is gone or at another layer: see the engine's log",
            )
        del self._away[step]
        series, sent_step = image.stamped(place)
        if (series, sent_step) != (self._id, step):
            other = self.series.layers[self._window.position(sent_step)] if series == self._id else "another series"
            raise OutOfStep(
                f"rank {self._me} is at {name} (step {step}), rank {owner} sent {other} (step {sent_step})",
                remedy="the ranks ran different forward passes: report this model",
            )
        return place

    def _others(self) -> str:
        others = [str(rank) for rank in range(self._window.group) if rank != self._me]
        return f"rank{'s' * (len(others) > 1)} {', '.join(others)} to take it"


def total(rolling: Sequence[Rolling]) -> int:
    """Bytes that a rank keeps of all series."""
    return sum(one.bytes for one in rolling)
