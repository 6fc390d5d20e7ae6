// A simulator of NVIDIA's libcuda.so.1, for tests: the functions that a driver of device memory needs, with the vendor's
// binary interface (compiled against the vendor's own cuda.h) and rules. Where a rule is written is said at it: "VA" is
// docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__VA.html, likewise "MEM", "STREAM", "EVENT", "CTX"; the same text
// stands in cuda.h above each function.
#pragma once

#include <atomic>
#include <vector>

#include "books.h"
#pragma GCC visibility push(default)  // cuda.h says nothing of it
#include "cuda.h"
#pragma GCC visibility pop

namespace cuda {

using simulator::Fault;
using simulator::Process;
using simulator::refuse;
using simulator::Result;

extern std::atomic<bool> initialised;
extern thread_local std::vector<CUcontext> contexts;  // of the thread; the last one is current

enum class Needs { nothing, initialised, context };

CUresult translate(Fault fault);
bool known_device(Process& self, int device);
CUcontext context_of(int device);
int current_device();  // with a context

inline std::uint64_t number(const void* handle) { return reinterpret_cast<std::uint64_t>(handle); }

// Runs `work(process)` unless the call is ordered to fail or comes too early.
template <typename Work>
CUresult call(const char* name, Needs needs, Work&& work) {
    int code = 0;
    if (simulator::ordered_to_fail(name, &code)) {
        return static_cast<CUresult>(code);
    }
    Process* const self = simulator::process();
    if (self == nullptr) {
        return CUDA_ERROR_NO_DEVICE;
    }
    if (needs != Needs::nothing && (!initialised || self->card.forked())) {  // INITIALIZE cuInit: before anything else
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    if (needs == Needs::context && contexts.empty()) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    return work(*self);
}

}  // namespace cuda

#define CALL(needs, ...) \
    return cuda::call(__func__, cuda::Needs::needs, [&]([[maybe_unused]] Process& self) -> CUresult __VA_ARGS__)
