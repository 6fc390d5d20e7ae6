"""What two engines must have in common before one's bytes mean the same to the other. Pure."""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

Text = Annotated[str, msgspec.Meta(max_length=1024)]
Rank = Annotated[int, msgspec.Meta(ge=0, le=65535)]

CHECKPOINT = "checkpoint"
"""`Identity.kernels` of weights as the checkpoint has them, laid out for nobody."""

REMEDIES = {
    "model": "the checkpoints differ: fetch the same revision on both machines",
    "vllm": "install the same vLLM on both machines",
    "isa": "the processors pack weights differently: stream between like machines, or load from disk",
    "layout": "the weights lie differently in memory: give both engines the same arguments",
}
_REMEDY = "give both engines the same arguments"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's weights: which content, and how they lie in memory.

    `model`: digest of the checkpoint's revision, never its path, and behind it that of its configuration. `kernels`:
    who laid the weights out. `isa`: the instruction set they were packed for. `layout`: digest of the table of extents;
    empty: not known yet.
    """

    model: Text
    dtype: Text
    quantization: Text = ""
    tp_rank: Rank = 0
    tp_size: Rank = 1
    pp_rank: Rank = 0
    pp_size: Rank = 1
    ep_rank: Rank = 0
    ep_size: Rank = 1
    vllm: Text
    kernels: Text
    isa: Annotated[tuple[Text, ...], msgspec.Meta(max_length=256)] = ()
    layout: Text = ""

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits; equal exactly where all fields are."""
        return _digest(msgspec.structs.astuple(self))

    @property
    def family(self) -> str:
        """The same without `layout`: known before the model is built."""
        return msgspec.structs.replace(self, layout="").fingerprint

    @property
    def kin(self) -> str:
        """What revisions of one model have in common: the digest of its configuration."""
        return self.model.rpartition(" ")[2]


def differences(mine: Identity, theirs: Identity) -> tuple[str, ...]:
    """One line for each field that differs, with its remedy; nothing: the fingerprints are equal."""
    lines = []
    for name in Identity.__struct_fields__:
        here, there = getattr(mine, name), getattr(theirs, name)
        if here != there:
            lines.append(
                f"{name}: {_show(here, there)} here, {_show(there, here)} there ({REMEDIES.get(name, _REMEDY)})"
            )
    return tuple(lines)


def _show(value: object, other: object) -> str:
    if isinstance(value, tuple) and isinstance(other, tuple):
        more = ", ".join(str(one) for one in value if one not in other)
        return f"also {more}" if more else "no more"
    return repr(value)


def _digest(fields: tuple[object, ...]) -> str:
    return hashlib.sha256(msgspec.json.encode(fields)).hexdigest()[:32]
