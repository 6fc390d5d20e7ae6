"""libascendcl as a C program calls it, for tests of the simulator: structures and codes are the vendor's (acl_rt.h)."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_float, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p

from tests.helpers.simulator import CHUNK, Simulator

PARAM_INVALID = 107000
INVALID_DEVICE = 107001
CONTEXT_NULL = 107002
INVALID_HANDLE = 107017
FEATURE_NOT_SUPPORT = 207000
MEMORY_ALLOCATION = 207001
NO_PERMISSION = 207006
NO_STREAM_RESOURCE = 207008
STREAM_SYNC_TIMEOUT = 507046
EVENT_SYNC_TIMEOUT = 507047
SYS_DMA = 507013
DRV_INTERNAL_ERROR = 507899
UNINITIALIZE = 100001
REPEAT_INITIALIZE = 100002
H2H, H2D, D2H, D2D = range(4)
HBM_HUGE, DDR_HUGE = 4, 2
SYNC, TIME_LINE = 1, 8


class Location(ctypes.Structure):
    _fields_ = (("id", c_uint32), ("type", c_int))


class Prop(ctypes.Structure):
    _fields_ = (
        ("handle_type", c_int),
        ("allocation_type", c_int),
        ("attr", c_int),
        ("location", Location),
        ("reserve", c_uint64),
    )


class AccessDesc(ctypes.Structure):
    _fields_ = (("flags", c_int), ("location", Location), ("rsv", ctypes.c_uint8 * 12))


class Acl:
    """Calls by name; every `...` method below it is one that must succeed and returns what it gave."""

    def __init__(self, simulator: Simulator, device: int = 0) -> None:
        self.lib = simulator.lib
        self.lib.aclGetRecentErrMsg.restype = ctypes.c_char_p
        assert self("aclInit", None) in (0, REPEAT_INITIALIZE)
        self.ok("aclrtSetDevice", device)

    def __call__(self, name: str, *args: object) -> int:
        """The code that the function returns."""
        function = getattr(self.lib, name)
        return int(function(*(ctypes.c_int64(one) if isinstance(one, int) else one for one in args)))

    def ok(self, name: str, *args: object) -> None:
        code = self(name, *args)
        assert code == 0, (name, code, self.lib.aclGetRecentErrMsg())

    def reserve(self, size: int, hint: int = 0) -> int:
        out = c_void_p()
        self.ok("aclrtReserveMemAddress", byref(out), size, 0, hint, 0)
        return out.value or 0

    def malloc(self, size: int = CHUNK, device: int = 0) -> int:
        out = c_void_p()
        prop = Prop(0, 0, HBM_HUGE, Location(device, 1), 0)
        self.ok("aclrtMallocPhysical", byref(out), size, byref(prop), 0)
        return out.value or 0

    def map(self, va: int, handle: int, size: int = CHUNK) -> int:
        return self("aclrtMapMem", va, size, 0, handle, 0)

    def unmap(self, va: int) -> int:
        return self("aclrtUnmapMem", va)

    def free(self, handle: int) -> int:
        return self("aclrtFreePhysical", handle)

    def export(self, handle: int, flags: int = 0) -> int:
        out = c_uint64()
        self.ok("aclrtMemExportToShareableHandle", handle, 0, flags, byref(out))
        return out.value

    def allow(self, number: int, *pids: int) -> int:
        return self("aclrtMemSetPidToShareableHandle", number, (c_int32 * len(pids))(*pids), len(pids))

    def import_(self, number: int, device: int = 0) -> tuple[int, int]:
        out = c_void_p()
        return self("aclrtMemImportFromShareableHandle", number, device, byref(out)), out.value or 0

    def bare_pid(self) -> int:
        out = c_int32()
        self.ok("aclrtDeviceGetBareTgid", byref(out))
        return out.value

    def free_bytes(self) -> int:
        free, total = c_size_t(), c_size_t()
        self.ok("aclrtGetMemInfo", 1, byref(free), byref(total))
        return free.value

    def host(self, size: int) -> int:
        out = c_void_p()
        self.ok("aclrtMallocHost", byref(out), size)
        return out.value or 0

    def stream(self) -> int:
        out = c_void_p()
        self.ok("aclrtCreateStream", byref(out))
        return out.value or 0

    def event(self, flags: int = SYNC | TIME_LINE) -> int:
        out = c_void_p()
        self.ok("aclrtCreateEventWithFlag", byref(out), flags)
        return out.value or 0

    def copy(self, to: int, source: int, size: int, kind: int, stream: int) -> int:
        return self("aclrtMemcpyAsync", to, size, source, size, kind, stream)

    def sync(self, stream: int, timeout_ms: int = 60_000) -> int:
        return self("aclrtSynchronizeStreamWithTimeout", stream, timeout_ms)

    def recorded(self, event: int) -> bool:
        status = c_int()
        self.ok("aclrtQueryEventStatus", event, byref(status))
        return status.value == 1

    def elapsed(self, start: int, end: int) -> tuple[int, float]:
        out = c_float()
        return self("aclrtEventElapsedTime", byref(out), start, end), out.value
