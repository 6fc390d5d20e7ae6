// Copy kernels: one contiguous range to another, past the caches where the CPU can.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace vnpu {

struct CopyKernel {
    const char* name;
    void (*copy)(void* destination, const void* source, std::size_t length);
    // After this, what this thread copied is visible to every thread that is ordered behind it. Streaming stores are
    // not ordered by themselves; one fence for many small copies is cheaper than one for each.
    void (*publish)();
};

// Those this CPU can run, best first; the last is the C library's memcpy.
const std::vector<CopyKernel>& copy_kernels();

// By name, or the best where it is empty. Throws std::invalid_argument.
const CopyKernel& find_copy_kernel(const std::string& name);

// Zeroes a range past the caches, and publishes it.
void zero(void* destination, std::size_t length);

// What the dispatch found, for people.
std::vector<std::string> cpu_features();

}  // namespace vnpu
