// CRC-32C 256 bytes at a time, for CPUs that multiply without carry in 512 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "rows.h"

namespace vnpu {

inline constexpr std::size_t wide_step = 256;

// Whether this CPU and system can.
bool has_wide();

// The state `sum` (inverted sum of what came before) after `length` bytes, a multiple of `wide_step` and not 0.
std::uint32_t update_wide(std::uint32_t sum, const unsigned char* data, std::size_t length);

// The same, and streams them past the caches to `to`, a multiple of 64: one pass over memory. Follow it by a fence
// (`CopyKernel::publish`).
std::uint32_t update_wide_copying(std::uint32_t sum, unsigned char* to, const unsigned char* data, std::size_t length);

// Whether the next two take these rows: at least one, each as long as a multiple of `wide_step`, not 0.
bool wide(std::span<const Row> rows);

// The same of rows end to end.
std::uint32_t update_wide_rows(std::uint32_t sum, std::span<const Row> rows);

// And lays them end to end to `to`, where they stay in the caches.
std::uint32_t update_wide_gathering(std::uint32_t sum, char* to, std::span<const Row> rows);

// The same of what lies at `from`, streamed to rows, each at a multiple of 64 and as long as one of `wide_step`. Follow it
// by a fence.
std::uint32_t update_wide_scattering(std::uint32_t sum, std::span<const Place> rows, const char* from);

}  // namespace vnpu
