// Copy kernels: one contiguous range to another, past the caches where the CPU can.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace vnpu {

// Copies `length` bytes; they are visible to every thread that is ordered after the return.
using CopyKernel = void (*)(void* destination, const void* source, std::size_t length);

struct NamedKernel {
    const char* name;
    CopyKernel copy;
};

// Those this CPU can run, best first; the last is the C library's memcpy.
const std::vector<NamedKernel>& copy_kernels();

// By name, or the best where it is empty. Throws std::invalid_argument.
CopyKernel find_copy_kernel(const std::string& name);

// What the dispatch found, for people.
std::vector<std::string> cpu_features();

}  // namespace vnpu
