// What the kernel says about pages: how many are huge, how much memory is left.
#pragma once

#include <cstddef>

namespace vnpu {

// Bytes of [start, start + length) of this process that are mapped by huge pages (PAGEMAP_SCAN, Linux 6.7; before that
// /proc/self/smaps, where a mapping counts if it overlaps the range).
std::size_t huge_bytes(const void* start, std::size_t length);

// Bytes that can be taken without swapping or being killed: MemAvailable, and what the control group leaves.
std::size_t available_memory();

}  // namespace vnpu
