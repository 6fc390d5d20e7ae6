// A point in time from seconds that may be as many as a caller likes.
#pragma once

#include <algorithm>
#include <chrono>

namespace vnpu {

// A year is for ever, and does not overflow the clock.
inline std::chrono::steady_clock::time_point deadline_after(double seconds) {
    const auto limit = std::chrono::duration<double>(std::clamp(seconds, 0.0, 365.0 * 86400));
    return std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(limit);
}

inline double seconds_until(std::chrono::steady_clock::time_point deadline) {
    return std::chrono::duration<double>(deadline - std::chrono::steady_clock::now()).count();
}

}  // namespace vnpu
