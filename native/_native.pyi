"""The C++ side of `native`: drivers of device memory, streaming copies, digests, and the arena that tensors live in.

Addresses, sizes and offsets are plain integers, in bytes. Every call that can take longer than a few microseconds
releases the GIL. A range is `(address, length)`. Nothing here keeps the memory behind an address alive: callers do.
"""

from collections.abc import Sequence
from typing import final

class DriverError(RuntimeError):
    """A driver refused a call or the system below it failed. The driver's state is what it was before the call."""

    call: str
    """What was called, e.g. `map`."""
    code: int
    """An errno where we refused or the system failed, else the vendor's error number."""
    name: str
    """That number's name, e.g. `EBUSY` or `CUDA_ERROR_OUT_OF_MEMORY`."""
    remedy: str
    """One sentence that tells what to do."""

@final
class DriverStats:
    """What one `Driver` object holds, in bytes and counts (own: created here; imported: from another process)."""

    @property
    def own_bytes(self) -> int: ...
    @property
    def imported_bytes(self) -> int: ...
    @property
    def mapped_bytes(self) -> int: ...
    @property
    def huge_bytes(self) -> int:
        """Of `own_bytes`: measured, right after populating, to lie on huge pages."""
    @property
    def handles(self) -> int: ...
    @property
    def reservations(self) -> int: ...

@final
class Driver:
    """Physical chunks and the virtual addresses they are mapped at. Thread-safe; made by `open_driver`.

    Ascend's rules hold on every driver, so that code which passes on the host does not fail there: a chunk is mapped
    whole at offset 0 and at one address only; one reservation holds only own or only imported handles; a handle is
    exported once; a mapped handle is not destroyed; a reservation with something mapped is not released.

    Dropping the object closes its descriptors but never pulls mapped or pinned memory from under a pointer: it stays
    so until the process ends. Each thread may call; a vendor's device is made the thread's own for the call.
    """

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> int: ...
    @property
    def granularity(self) -> int:
        """Sizes and addresses are multiples of this (2 MiB on the host and, by their documents, on both vendors)."""
    @property
    def huge(self) -> bool:
        """Own chunks are asked for on huge pages (`stats().huge_bytes` says what the kernel gave)."""
    @property
    def backing(self) -> str:
        """On the host where own chunks come from: `tmpfs` (private, huge pages) or `memfd` (4 KiB pages); else the
        path of the vendor's library."""
    def reserve(self, size: int, hint: int = 0) -> int:
        """Address of `size` reserved, inaccessible bytes; exactly at `hint` (a multiple of 1 GiB) where it is not 0.

        Raises:
            DriverError: the size is no multiple of the granularity, or the hinted range is taken.
        """
    def release(self, va: int) -> None:
        """Give back a reservation, by its first address; nothing may be mapped in it."""
    def create(self, size: int) -> int:
        """Handle of a new physical chunk of `size` bytes, populated and zero."""
    def destroy(self, handle: int) -> None:
        """Forget a handle that is not mapped. Pages are free when every process has let go of them."""
    def wipe(self, handles: Sequence[int]) -> None:
        """Make own chunks zero again, also what other processes see of them. Where one fails, those before it are zero
        already."""
    @property
    def sharing(self) -> str:
        """How chunks cross to another process: `descriptor` (host, cuda: SCM_RIGHTS) or `handle` (ascend: a number)."""
    def share_id(self) -> int:
        """How an exporter names this process in `permit` (ascend: `aclrtDeviceGetBareTgid`; else the pid)."""
    def permit(self, handle: int, share_ids: Sequence[int]) -> None:
        """These processes may import an exported own chunk from now on. No change where descriptors are shared."""
    def export_handle(self, handle: int) -> int:
        """A descriptor to send to another process, the caller's to close, or a 64-bit number. It is given once."""
    def import_handle(self, shareable: int, size: int) -> int:
        """Handle of a chunk that another process exported. A descriptor stays the caller's: close it afterwards."""
    def map(self, va: int, handle: int, writable: bool = True) -> None:
        """Map a whole chunk at `va` inside one reservation."""
    def unmap(self, va: int) -> None:
        """Take the chunk mapped at `va` away; the range stays reserved and faults when touched. Nothing may use it any
        more: wait for the streams first."""
    def map_many(self, pairs: Sequence[tuple[int, int]], writable: bool = True) -> None:
        """`map` for each `(va, handle)`, all or none."""
    def unmap_many(self, vas: Sequence[int]) -> None:
        """`unmap` for each address, all or none."""
    def pin(self, size: int) -> int:
        """Address of `size` bytes (whole pages) of new host memory that the device copies at full speed."""
    def unpin(self, base: int) -> None:
        """Free what `pin` gave."""
    def register_host(self, base: int, size: int) -> None:
        """Let the device copy these whole pages, which are there already, at full speed."""
    def unregister_host(self, base: int) -> None:
        """The reverse of `register_host`."""
    def create_stream(self) -> int:
        """A stream: what is put on it is done in order. On the host each is a thread."""
    def destroy_stream(self, stream: int) -> None:
        """Wait for what is on it, then forget it."""
    def zero_async(self, stream: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Put zeros into every `(address, length)`, which this driver has mapped; in the stream's order."""
    def copy_async(self, stream: int, entries: Sequence[tuple[int, int, int]], kind: str) -> None:
        """Put a copy of every `(destination, source, length)` on the stream.

        Both sides must stay until it is done. Where the device refuses an entry, those before it may be under way.

        Args:
            kind: `h2d`, `d2h` or `d2d` (addresses and lengths multiples of 64).

        Raises:
            DriverError: the device's side is not mapped by this driver, or entries overlap.
            ValueError: unknown kind.
        """
    def wait_stream(self, stream: int, timeout_s: float = 3600.0) -> bool:
        """Wait until all that is on it now is done; False when time is up."""
    def create_event(self) -> int:
        """An event: a point in the work of a stream."""
    def destroy_event(self, event: int) -> None:
        """Forget an event. Refused while another thread waits for it."""
    def record(self, event: int, stream: int) -> None:
        """The event is the point behind what is on the stream now; an earlier point is forgotten."""
    def stream_wait(self, stream: int, event: int) -> None:
        """What is put on the stream from now on waits for the event's point."""
    def event_done(self, event: int) -> bool:
        """Whether its point was reached. Raises DriverError where it was never recorded."""
    def wait_event(self, event: int, timeout_s: float = 3600.0) -> bool:
        """Wait until its point is reached; False when time is up."""
    def elapsed(self, start: int, end: int) -> float:
        """Seconds between two points that were reached."""
    def free_bytes(self) -> int:
        """Bytes that `create` may still take: what the limit leaves, at most what the machine or device has."""
    def stats(self) -> DriverStats: ...

def open_driver(name: str, device: int = 0, limit: int = 0, backing: str = "auto", library: str = "") -> Driver:
    """Open a driver: `host`, `ascend` or `cuda`.

    Args:
        limit: bytes that own chunks may take together; 0: no limit of our own.
        backing: host only: `auto`, `tmpfs` (fail where the system forbids it), `memfd`, or the absolute path of a
            folder on a tmpfs that is mounted already, with huge=always where huge pages are wanted.
        library: ascend and cuda only: path of the vendor's library. Empty: what VNPU_ASCENDCL or VNPU_LIBCUDA says,
            else `libascendcl.so` or `libcuda.so.1`.

    Raises:
        DriverError: unknown name, or what it needs is not there.
    """

@final
class OrderedCopy:
    """A long copy between host and device in the order of the entries, with progress: on the host by threads of this
    process, on a device by a stream of its own. Started at once; dropping it cancels it.

    Both sides must stay until it is done. On a device progress is counted in steps of at least 32 MiB.
    """

    def __init__(
        self,
        driver: Driver,
        entries: Sequence[tuple[int, int, int]],
        kind: str,
        threads: int = 1,
        cpus: Sequence[int] = (),
    ) -> None:
        """`entries` and `kind` as for `Driver.copy_async`; `threads` and `cpus` as for `copy`, on the host only."""
    def wait(self, entries: int | None = None, timeout_s: float = 3600.0) -> bool:
        """Wait until the first `entries` entries (None: all) are whole; False when time is up or it was cancelled."""
    def cancel(self) -> None:
        """Return when nothing is copied any more. What a device was given already it still does."""
    @property
    def done(self) -> bool:
        """All entries are whole."""
    @property
    def cancelled(self) -> bool: ...
    @property
    def entries_done(self) -> int:
        """So many entries, counted from the first without a gap, are whole."""
    @property
    def bytes_done(self) -> int: ...
    @property
    def bytes_total(self) -> int: ...
    @property
    def seconds(self) -> float:
        """From the start until the last byte, or until now; on a device by its own clock."""

def layouts() -> dict[str, int]:
    """Sizes, offsets and values of the vendors' structures and enumerations as declared here, for comparing them with
    the vendors' headers: `"CUmemAllocationProp": 32`, `"CUmemAllocationProp.location": 8`, `"ACL_HBM_MEM_HUGE": 4`."""

def copy(
    entries: Sequence[tuple[int, int, int]], threads: int = 1, cpus: Sequence[int] = (), kernel: str = ""
) -> float:
    """Copy every `(destination, source, length)` past the caches; seconds it took.

    Args:
        threads: how many work; with 1 and no `cpus` it is the calling thread.
        cpus: where given, thread i runs on CPU `cpus[i % len(cpus)]`.
        kernel: one of `copy_kernels()`; empty: the first.

    Raises:
        ValueError: destinations overlap each other or a source, unknown kernel, a CPU this process may not use.
    """

@final
class CopyJob:
    """The same copy on background threads, which take the entries in order, so that the first are ready first.

    The memory must stay mapped until `done`. Dropping the job cancels it and waits for its threads.
    """

    def __init__(
        self, entries: Sequence[tuple[int, int, int]], threads: int = 1, cpus: Sequence[int] = (), kernel: str = ""
    ) -> None:
        """Start at once. Arguments and errors are those of `copy`."""
    def wait(self, entries: int | None = None, timeout_s: float = 3600.0) -> bool:
        """Wait until the first `entries` entries (None: all) are whole; False when time is up or it was cancelled."""
    def cancel(self) -> None:
        """Stop after the pieces in flight (at most 1 MiB a thread) and wait for the threads."""
    @property
    def done(self) -> bool:
        """All entries are whole."""
    @property
    def cancelled(self) -> bool: ...
    @property
    def entries_done(self) -> int:
        """So many entries, counted from the first without a gap, are whole and visible to the caller."""
    @property
    def bytes_done(self) -> int: ...
    @property
    def bytes_total(self) -> int: ...
    @property
    def seconds(self) -> float:
        """From the start until the last byte, or until now."""

class Boxes:
    """Strided copies, for `place` and `gather`, any number of times."""

    def __init__(self, boxes: Sequence[tuple[int, int, int, Sequence[tuple[int, int, int]]]]) -> None:
        """A box is `(destination offset, source offset, row length, loops)`; a loop is `(count, destination stride,
        source stride)`, outermost first, at most four. Raises ValueError where there are more."""

def place(
    boxes: Boxes,
    destination: tuple[int, int],
    source: tuple[int, int],
    kernel: str = "",
) -> int:
    """Strided copies between two ranges `(address, length)`; bytes copied.

    Bounds are checked before a byte is touched; that no byte is written twice is the caller's to see to. Kernels are
    those of `copy`; `memcpy` leaves the result in the caches.

    Raises:
        ValueError: a box leaves a range, the ranges overlap, the kernel is unknown.
    """

def gather(
    boxes: Boxes,
    destination: tuple[int, int],
    source: tuple[int, int],
) -> int:
    """Rows of the source end to end into the first bytes of `destination`, in the order of the boxes and their loops;
    the CRC-32C of those bytes. Boxes as for `place`, but where they say they go does not count. What was written stays
    in the caches.

    Raises:
        ValueError: as `place`.
    """

def scatter(
    boxes: Boxes,
    destination: tuple[int, int],
    source: tuple[int, int],
) -> int:
    """The other half: the first bytes of `source` to the destination's rows, past the caches; their CRC-32C. Where
    boxes say they come from does not count.

    Raises:
        ValueError: as `place`; nothing was copied.
    """

def copy_kernels() -> list[str]:
    """Copy kernels this CPU runs, best first: of `avx512`, `avx2`, `neon`, `memcpy`."""

def cpu_features() -> list[str]:
    """What the dispatch found on this CPU, e.g. `["avx512f", "avx2", "sse4.2"]`."""

def crc32c(address: int, length: int, init: int = 0, kernel: str = "") -> int:
    """CRC-32C (Castagnoli, RFC 3720 B.4) of a range; `init` continues an earlier one. `kernel`: empty (the best),
    `instruction` or `portable`."""

def crc32c_bytes(data: bytes, init: int = 0) -> int:
    """CRC-32C of `data`; `init` continues an earlier one."""

def crc32c_fold(parts: Sequence[tuple[int, int]]) -> int:
    """CRC-32C of parts end to end, each given as its own CRC-32C and its length in bytes: crc(A B) = crc(A) * x^(8 |B|)
    + crc(B) in GF(2)[x]."""

def crc32c_rows(rows: Sequence[tuple[int, int]], init: int = 0) -> int:
    """CRC-32C of ranges as if they lay end to end; `init` continues an earlier one."""

def send_rows(socket: int, rows: Sequence[tuple[int, int]], timeout_s: float) -> int:
    """Write ranges end to end into a stream socket (its descriptor). 0, or an errno; ETIMEDOUT: not all was taken."""

def send_gathered(
    socket: int, header: bytes, boxes: Boxes, stage: tuple[int, int], source: tuple[int, int], timeout_s: float
) -> int:
    """`gather` into all of `stage`, and write a frame of it: `header` ends with that of a frame, whose two sums are put
    in here. As `send_rows`.

    Raises:
        ValueError: as `gather`, or the rows do not fill the stage, or there is no whole header; nothing was sent.
    """

class Halt:
    """Stops `send_frames` between two frames. From any thread."""

    def set(self) -> None: ...
    def clear(self) -> None: ...

def send_frames(
    socket: int,
    frames: Sequence[tuple[bytes, int, int, int]],
    spacing: tuple[float, float],
    halt: Halt,
    timeout_s: float,
) -> tuple[int, int]:
    """Write frames into a stream socket that does not block, without Python's lock: a header, then `length` bytes of a
    file (its descriptor; -1: of memory) from a place on, each frame when it is due.

    `spacing`: seconds until the first is (below 0: it was before), and bytes a second for those behind it (0: at once).
    `timeout_s`: what each may take from then on. 0, an errno, or -1 where a file ended before; and how many frames went
    out whole, fewer where `halt` was set.
    """

def receive_rows(socket: int, rows: Sequence[tuple[int, int]], timeout_s: float) -> tuple[int, int]:
    """Fill ranges from a stream socket. 0, an errno, or -1 where the peer closed before; the CRC-32C of what came."""

def receive_scattered(
    socket: int, boxes: Boxes, destination: tuple[int, int], stage: tuple[int, int], timeout_s: float
) -> tuple[int, int]:
    """As many bytes as `stage` has, read and placed by `scatter`, piece by piece where the CPU sums wide. An error, and
    the CRC-32C of what came, as of `receive_rows`.

    Raises:
        ValueError: as `scatter`, or the rows do not fill the stage; nothing was read.
    """

def receive_frame(socket: int, due: bytes, address: int, length: int, timeout_s: float) -> tuple[int, bytes, int]:
    """A header as long as `due`, from a stream socket; where it is that very one, `length` bytes behind it, written to
    `address`. An error as of `receive_rows`, the header that came, the CRC-32C of what was written."""

def wipe_file(descriptor: int, size: int) -> None:
    """Make a chunk of the host driver zero whose creator is gone, by a descriptor that was exported from it.

    Raises:
        DriverError: it is none of `size` bytes, or cannot be reached.
    """

def checked_copy(destination: int, source: int, length: int, init: int = 0) -> int:
    """Copy past the caches, in the caller's thread; CRC-32C of what was read, `init` continues an earlier one. For
    sources that nobody writes to meanwhile. The ranges do not overlap."""

def checked_copies(copies: Sequence[tuple[int, int, int, int]]) -> int:
    """`checked_copy` of (destination, source, length, CRC-32C that is due), one after the other. How many were right
    before the first that was not; that one is written, those behind it are not."""

def sample_digests(addresses: Sequence[int], length: int) -> list[int]:
    """`sample_digest` of each range of `length` bytes on its own, in one call without Python's lock."""

def sample_digest(ranges: Sequence[tuple[int, int]], stride: int = 262144, width: int = 64) -> int:
    """Canary of a restore: a 64-bit digest of samples, under 1 ms per GiB.

    Of each range the first and last `width` bytes count, and `width` bytes at a pseudo-random place in each `stride`.
    So with the default stride every 2 MiB page that a range touches is sampled at least once within that page, and a
    page or chunk that was not restored is noticed unless it differs from the right one in none of its samples. Equal
    lengths in equal order with equal content give equal digests, wherever they lie. Not a proof of content: for that
    see `native.digest.content_digest`.

    Raises:
        ValueError: `stride` is over 1 MiB, or `width` is 0 or over `stride`.
    """

@final
class Arena:
    """First-fit allocator over one reservation whose first `capacity` bytes are mapped; book-keeping lies outside.

    Blocks are whole 4 KiB pages. Thread-safe. It touches no memory itself: mapping is the caller's, and while pages
    are away nothing may be allocated (deactivate it first); `free` is always safe.
    """

    def __init__(self, base: int, reserved: int, chunk: int = 2097152, capacity: int = 0) -> None:
        """Manage `reserved` bytes from `base`; `chunk` is the unit of mapping, for `chunks_in_use` and `trim`."""
    def grow(self, capacity: int) -> None:
        """So many bytes from `base` are mapped now. Raises ValueError when it shrinks or exceeds the reservation."""
    def trim(self) -> int:
        """Shrink `capacity` to the chunks below `top` and return it: the chunks above may be unmapped."""
    def allocate(self, size: int, alignment: int = 4096) -> int:
        """Address of a block. Raises MemoryError when nothing fits, ValueError on a bad size or alignment."""
    def free(self, address: int) -> None:
        """Raises ValueError where no live block starts at `address`."""
    def blocks(self) -> list[tuple[int, int]]:
        """Live blocks as `(offset, length)`, by offset."""
    def extents(self) -> list[tuple[int, int]]:
        """Live blocks with neighbours merged, as `(offset, length)`, by offset."""
    def chunks_in_use(self) -> list[int]:
        """Indices of the chunks that hold at least one byte of a live block."""
    @property
    def base(self) -> int: ...
    @property
    def reserved(self) -> int: ...
    @property
    def chunk(self) -> int: ...
    @property
    def capacity(self) -> int:
        """Bytes from `base` that are mapped."""
    @property
    def top(self) -> int:
        """Offset just past the highest live block; 0 when there is none."""
    @property
    def live_bytes(self) -> int: ...
    @property
    def live_blocks(self) -> int: ...
    @property
    def peak_bytes(self) -> int:
        """Highest `live_bytes` so far."""
    @property
    def spilled_bytes(self) -> int:
        """Bytes that the hook had to take from libc because nothing here fitted (a sum, never going down)."""
    @property
    def spilled_blocks(self) -> int: ...

def serve_device(device: int, arena: Arena | None) -> None:
    """`vnpu_malloc(size, device, stream)` of this module takes from `arena` from now on; None: it returns null.

    `vnpu_malloc` and `vnpu_free` are C functions for torch's pluggable allocators (`CUDAPluggableAllocator(path,
    "vnpu_malloc", "vnpu_free")`, `NPUPluggableAllocator` the same), with `path` that of this module. An arena that was
    served once is known for the life of the process, so that a free finds its blocks.

    Raises:
        ValueError: the device is not 0 to 63, or the range overlaps that of an earlier arena with live blocks.
    """

def install_hook() -> int:
    """Redirect `posix_memalign` and `free` of libc10, libtorch_cpu and vLLM's `_C*` that are loaded now.

    Returns how many relocation slots lead to the hook, 0 when none of these libraries is loaded. Call again after
    loading more of them; slots already redirected stay. Without an active arena the hook passes everything to libc.
    """

def hooked_libraries() -> list[tuple[str, int]]:
    """Path and number of redirected slots of each library that the hook sits in."""

def activate(arena: Arena | None, min_block: int = 65536) -> None:
    """From now on hooked allocations of at least `min_block` bytes, in every thread, come from `arena`; None: stop.

    An arena that was active once is known for the life of the process, so that a `free` of its blocks finds it.

    Raises:
        ValueError: its range overlaps that of another arena that was active once.
        RuntimeError: no hook is installed, or too many arenas (16).
    """
