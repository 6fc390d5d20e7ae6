"""The checkpoint that is streamed where kernels differ: the source's files, opened when somebody asks for the first
time, and the starter's memory for what comes, as tensors."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple, overload

import torch

from coordinator.errors import ConfigError
from engine_patch.estimate import named_tensors, weight_files
from engine_patch.revision import revision
from transfer.errors import TransferError
from transfer.netloader.checkpoint import FileSource, Place, checkpoint_identity, summed
from transfer.netloader.identity import Identity
from transfer.netloader.manifest import Extent, Manifest
from transfer.netloader.shelf import Shelf

log = logging.getLogger("vllm.vnpu.netloader")

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool, "U8": torch.uint8,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip
"""As safetensors names them."""


class Checkpoint(NamedTuple):
    """Its revision, or the name that was given to it (`named`), and where it lies here."""

    model: str
    folder: Path
    named: bool = False

    @property
    def identity(self) -> Identity:
        return checkpoint_identity(self.model)


class LazyShelf(Shelf):
    """Serves a checkpoint's files from the first question on: until then nothing is read. Who asks meanwhile is told to
    ask later."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self._checkpoint = checkpoint
        self._begun = threading.Lock()

    def take(self, timeout_s: float) -> FileSource | None:
        """As `Shelf.take`."""
        if self._begun.acquire(blocking=False):
            threading.Thread(target=self._open, name="vnpu-checkpoint", daemon=True).start()
        found = super().take(timeout_s)
        return found if isinstance(found, FileSource) else None

    def _open(self) -> None:
        try:
            source = open_files(self._checkpoint)
        except (TransferError, ConfigError) as error:
            log.warning("the checkpoint is not served: %s", error)
            self.close()
            return
        log.info("the checkpoint's %d bytes are served too", source.manifest.size)
        self.put(source)


def open_files(checkpoint: Checkpoint) -> FileSource:
    """Open the files and sum them up.

    Raises:
        TransferError, ConfigError: they cannot be read, or are another revision's by now.
    """
    if not checkpoint.named and revision(checkpoint.folder) != checkpoint.model:
        raise TransferError(f"{checkpoint.folder} holds another revision by now", remedy="start the engine anew")
    extents: list[Extent] = []
    places: list[Place] = []
    opened: list[int] = []
    try:
        for file in weight_files(checkpoint.folder):
            opened.append(descriptor := os.open(file, os.O_RDONLY))
            for name, tensor, offset in named_tensors(file):
                length = tensor.data_offsets[1] - tensor.data_offsets[0]
                if length:
                    extents.append(Extent(name[:512], length, -1, tensor.dtype, tensor.shape))
                    places.append(Place(descriptor, offset))
        if not places:
            raise TransferError(f"{checkpoint.folder} holds no tensors")
        return FileSource(summed(checkpoint.model, extents, places), places)
    except BaseException as error:
        for descriptor in opened:
            os.close(descriptor)
        if isinstance(error, OSError):
            raise TransferError(f"{checkpoint.folder}: {error}", remedy="fetch the model again") from error
        raise


class Room(Sequence[int]):
    """Memory for a checkpoint that is known when its manifest comes: the address of each extent."""

    def __init__(self) -> None:
        self._addresses: list[int] = []
        self._held: mmap.mmap | None = None
        self._manifest: Manifest | None = None

    def make(self, whole: Manifest) -> None:
        """Raises TransferError where there is not so much memory, or an extent is no tensor."""
        for extent in whole.extents:
            dtype = DTYPES.get(extent.dtype)
            if dtype is None or prod(extent.shape) * dtype.itemsize != extent.length:
                raise TransferError(f"{extent.name}: {extent.length} bytes are no {extent.dtype} of {extent.shape}")
        aligned = [-(-extent.length // 64) * 64 for extent in whole.extents]
        try:
            self._held = mmap.mmap(-1, sum(aligned), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as error:
            raise TransferError(f"no memory for {whole.size} bytes of checkpoint: {error}") from error
        at = ctypes.addressof(ctypes.c_char.from_buffer(self._held))
        for size in aligned:
            self._addresses.append(at)
            at += size
        self._manifest = whole

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor of each, in this memory, which they keep."""
        if self._manifest is None or self._held is None:
            return
        first = self._addresses[0]
        for extent, address in zip(self._manifest.extents, self._addresses, strict=True):
            dtype = DTYPES[extent.dtype]
            flat = torch.frombuffer(self._held, dtype=dtype, count=prod(extent.shape), offset=address - first)
            yield extent.name, flat.reshape(extent.shape)

    def __len__(self) -> int:
        return len(self._addresses)

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[int]: ...
    def __getitem__(self, at: int | slice) -> int | Sequence[int]:
        return self._addresses[at]
