// Checks of content: CRC-32C of a range, and the canary of a restore.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace vnpu {

struct Range {
    std::uint64_t address;
    std::size_t length;
};

// CRC-32C (Castagnoli, RFC 3720 B.4), by the CPU's instruction where it has one; `init` continues an earlier one.
// `kernel`: empty (the best), "instruction" or "portable". Throws std::invalid_argument.
std::uint32_t crc32c(const void* data, std::size_t length, std::uint32_t init, const std::string& kernel);

struct SummedPart {
    std::uint32_t sum;
    std::size_t length;
};

// The CRC-32C of all parts end to end, from theirs.
std::uint32_t crc32c_fold(const std::vector<SummedPart>& parts);

// Copies past the caches, and returns the CRC-32C of what was read (`init` continues an earlier one): one pass over
// memory. Where somebody writes to the source meanwhile, the sum may be that of other bytes than were copied.
std::uint32_t checked_copy(void* destination, const void* source, std::size_t length, std::uint32_t init);

struct CheckedCopy {
    void* destination;
    const void* source;
    std::size_t length;
    std::uint32_t sum;
};

// `checked_copy` of one after the other; how many were right before the first whose sum was another.
std::size_t checked_copies(const std::vector<CheckedCopy>& copies);

// A digest of samples: the first and last `width` bytes of each range, and `width` bytes at a pseudo-random place in
// each `stride` of it. Every 2 MiB page that a range touches lies whole in the range or holds one of its ends, so with
// a stride of at most 1 MiB each such page is sampled. Places depend on lengths only, never on addresses.
// Throws std::invalid_argument.
inline constexpr std::size_t sample_stride = 262144;
inline constexpr std::size_t sample_width = 64;

std::uint64_t sample_digest(std::span<const Range> ranges, std::size_t stride, std::size_t width);

}  // namespace vnpu
