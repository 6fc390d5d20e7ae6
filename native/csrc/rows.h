// Rows of a few hundred bytes that are read one behind the other, with gaps between them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

namespace vnpu {

struct Row {
    const char* data;
    std::size_t length;  // not 0
};

// Called before row `at` is read: every fourth time it asks for the four rows that come 8 KiB later, line by line across
// them, into the second-level cache: more lines may be on their way there than to the first-level one.
//
// Always inlined: GCC drops a call of a function that does nothing but ask for memory.
[[gnu::always_inline]] inline void ask_ahead(std::span<const Row> rows, std::size_t at) {
    constexpr std::size_t together = 4;
    constexpr std::size_t ahead = 8192;
    if (at % together != 0) {
        return;
    }
    const std::size_t length = rows[at].length;
    const std::size_t first = at + std::max(together, ahead / length);
    if (first + together > rows.size()) {
        return;
    }
    const Row* const some = &rows[first];
    for (std::size_t line = 0; line < std::min(length, ahead / together); line += 64) {
        __builtin_prefetch(some[0].data + line, 0, 2);
        __builtin_prefetch(some[1].data + line, 0, 2);
        __builtin_prefetch(some[2].data + line, 0, 2);
        __builtin_prefetch(some[3].data + line, 0, 2);
    }
}

}  // namespace vnpu
