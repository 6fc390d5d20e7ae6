// What torch's pluggable allocators call: memory of a device out of an arena of ours.
//
//   torch.cuda.memory.CUDAPluggableAllocator(path, "vnpu_malloc", "vnpu_free")
//   torch_npu.npu.memory.NPUPluggableAllocator(path, "vnpu_malloc", "vnpu_free")
//
// with the path of this module, and then a MemPool of it (PyTorch, "CUDA semantics", "Using custom memory allocators").
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <memory>

#include "arena.h"

namespace vnpu {

constexpr int most_devices = 64;

// `vnpu_malloc` for `device` takes from this arena from now on; null: it has nothing. `vnpu_free` finds blocks of every
// arena that was ever given here, which are therefore kept. Throws std::invalid_argument where the device is none, or the
// range overlaps that of an earlier arena with live blocks.
void serve_device(int device, const std::shared_ptr<Arena>& arena);

}  // namespace vnpu

extern "C" {

// Null where no arena is served on the device or nothing fits: torch then reports that the device is out of memory.
// `stream` is a cudaStream_t or aclrtStream and not used: blocks of the arena are always mapped.
__attribute__((visibility("default"))) void* vnpu_malloc(ssize_t size, int device, void* stream);
// Torch has synchronised the stream before. A block that is of no arena is left alone.
__attribute__((visibility("default"))) void vnpu_free(void* block, ssize_t size, int device, void* stream);
}
