"""PURE: which layers of a model form series, by their names.

A name ends in what the layer is called and has one number before it: `model.layers.17.self_attn.fused_qkv_a_proj` is
number 17 of the series `model.layers.*.self_attn.fused_qkv_a_proj`. Series consist of layers of equal form (shapes and
types of all their tensors); a layer of another form begins another series.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import msgspec

from coordinator.errors import VnpuError
from engine_patch.sharded_linear.window import Window

_NUMBERED = re.compile(r"(.*?)\.(\d+)\.(.+)")


class Unshareable(VnpuError):
    """These layers cannot be shared, and why."""


class Candidate(msgspec.Struct, frozen=True):
    """A linear layer of this rank. `form`: shapes and types, as text. `why_not`: what keeps it from being shared."""

    name: str
    form: str
    why_not: str = ""


class Series(msgspec.Struct, frozen=True):
    """`layers`: names in the order of a forward pass."""

    name: str
    layers: tuple[str, ...]
    window: Window

    def owner(self, layer: str) -> int:
        return self.window.owner(self.layers.index(layer))


def chosen(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern names this layer: as shell patterns do, the whole name or the end of it after a dot.
    `o_proj` chooses every `….o_proj`, `layers.1?.*.o_proj` those of layers 10 to 19."""
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}") for pattern in patterns)


def plan(candidates: Iterable[Candidate], patterns: Sequence[str], group: int, prefetch: int) -> tuple[Series, ...]:
    """The series of the chosen candidates, which come in the order of the model; each rank of the group plans the same.

    Raises:
        Unshareable: a pattern chooses nothing, or something that cannot be shared; or there is but one rank.
    """
    if group < 2:
        raise Unshareable("sharded_linear: this group has one rank", remedy="give the model several devices")
    picked = [one for one in candidates if chosen(one.name, patterns)]
    for pattern in patterns:
        mine = [one for one in picked if chosen(one.name, (pattern,))]
        if not mine:
            raise Unshareable(
                f"sharded_linear: no linear layer of this model is called {pattern!r}",
                remedy="name layers as vLLM does, by their ends, e.g. fused_qkv_a_proj",
            )
        if (refused := next((one for one in mine if one.why_not), None)) is not None:
            raise Unshareable(f"sharded_linear: {refused.name}: {refused.why_not}", remedy=f"leave {pattern!r} out")
    return _windows(_grouped(picked), group, prefetch)


def _grouped(picked: Sequence[Candidate]) -> dict[tuple[str, str], list[tuple[int, str]]]:
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for one in picked:
        match = _NUMBERED.fullmatch(one.name)
        if match is None:
            raise Unshareable(
                f"sharded_linear: {one.name} is not one of several: there is no layer number in its name",
                remedy="choose layers that repeat from decoder layer to decoder layer",
            )
        before, number, after = match.groups()
        found.setdefault((f"{before}.*.{after}", one.form), []).append((int(number), one.name))
    return found


def _windows(found: dict[tuple[str, str], list[tuple[int, str]]], group: int, prefetch: int) -> tuple[Series, ...]:
    made: list[Series] = []
    first = 0
    for (name, _), numbered in found.items():
        if len(numbered) < 2:
            raise Unshareable(
                f"sharded_linear: {numbered[0][1]} is the only one of its form", remedy="leave it out, or share others"
            )
        window = Window(length=len(numbered), group=group, prefetch=prefetch, first=first)
        made.append(Series(name, tuple(layer for _, layer in sorted(numbered)), window))
        first = window.next_first
    return tuple(made)
