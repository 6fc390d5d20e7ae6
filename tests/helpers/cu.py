"""libcuda as a C program calls it, for tests of the simulator: structures and codes are the vendor's (cuda.h)."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_float, c_int, c_size_t, c_uint64, c_void_p

from tests.helpers.simulator import CHUNK, Simulator

INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NOT_INITIALIZED = 3
INVALID_DEVICE = 101
INVALID_CONTEXT = 201
INVALID_HANDLE = 400
NOT_READY = 600
ILLEGAL_ADDRESS = 700
ALREADY_REGISTERED = 712
NOT_REGISTERED = 713
NOT_SUPPORTED = 801
FD = 1
READ, READ_WRITE = 1, 3


class Location(ctypes.Structure):
    _fields_ = (("type", c_int), ("id", c_int))


class AllocFlags(ctypes.Structure):
    _fields_ = (
        ("compression", ctypes.c_ubyte),
        ("rdma", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    )


class Prop(ctypes.Structure):
    _fields_ = (
        ("type", c_int),
        ("handle_types", c_int),
        ("location", Location),
        ("win32", c_void_p),
        ("flags", AllocFlags),
    )


class AccessDesc(ctypes.Structure):
    _fields_ = (("location", Location), ("flags", c_int))


def prop(device: int = 0, handle_types: int = FD) -> Prop:
    return Prop(1, handle_types, Location(1, device), None, AllocFlags())


class Cu:
    """Calls by name; the methods are calls that must succeed, or say that they return the code."""

    def __init__(self, simulator: Simulator, device: int = 0) -> None:
        self.lib = simulator.lib
        self.ok("cuInit", 0)
        context = c_void_p()
        self.ok("cuDevicePrimaryCtxRetain", byref(context), device)
        self.context = context.value or 0
        self.ok("cuCtxPushCurrent_v2", self.context)

    def __call__(self, name: str, *args: object) -> int:
        """The code that the function returns."""
        function = getattr(self.lib, name)
        return int(function(*(ctypes.c_int64(one) if isinstance(one, int) else one for one in args)))

    def ok(self, name: str, *args: object) -> None:
        code = self(name, *args)
        assert code == 0, (name, code)

    def reserve(self, size: int, hint: int = 0) -> int:
        out = c_uint64()
        self.ok("cuMemAddressReserve", byref(out), size, 0, hint, 0)
        return out.value

    def create(self, size: int = CHUNK, handle_types: int = FD) -> int:
        out = c_uint64()
        self.ok("cuMemCreate", byref(out), size, byref(prop(handle_types=handle_types)), 0)
        return out.value

    def map(self, va: int, handle: int, size: int = CHUNK, flags: int = READ_WRITE) -> int:
        """The code of cuMemMap, and with `flags` access is given."""
        code = self("cuMemMap", va, size, 0, handle, 0)
        if code == 0 and flags:
            self.ok("cuMemSetAccess", va, size, byref(AccessDesc(Location(1, 0), flags)), 1)
        return code

    def unmap(self, va: int, size: int = CHUNK) -> int:
        return self("cuMemUnmap", va, size)

    def release(self, handle: int) -> int:
        return self("cuMemRelease", handle)

    def export(self, handle: int) -> int:
        out = c_int()
        self.ok("cuMemExportToShareableHandle", byref(out), handle, FD, 0)
        return out.value

    def import_(self, fd: int) -> tuple[int, int]:
        out = c_uint64()
        return self("cuMemImportFromShareableHandle", byref(out), fd, FD), out.value

    def free_bytes(self) -> int:
        free, total = c_size_t(), c_size_t()
        self.ok("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def host(self, size: int) -> int:
        out = c_void_p()
        self.ok("cuMemHostAlloc", byref(out), size, 0)
        return out.value or 0

    def stream(self) -> int:
        out = c_void_p()
        self.ok("cuStreamCreate", byref(out), 1)
        return out.value or 0

    def event(self, flags: int = 0) -> int:
        out = c_void_p()
        self.ok("cuEventCreate", byref(out), flags)
        return out.value or 0

    def elapsed(self, start: int, end: int) -> tuple[int, float]:
        out = c_float()
        return self("cuEventElapsedTime", byref(out), start, end), out.value
