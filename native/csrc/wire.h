// Bytes of many rows through one stream socket, with their sum, and no work for each row outside of here.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <sys/uio.h>

namespace vnpu {

// CRC-32C of the rows one behind the other; `init` continues an earlier one.
std::uint32_t crc32c_rows(const std::vector<iovec>& rows, std::uint32_t init);

// 0, or an errno: ETIMEDOUT where not all were taken within `timeout_s` seconds.
int send_rows(int socket, std::vector<iovec> rows, double timeout_s);

// What a header announces: memory at `at`, or from `at` on in a file (a descriptor; none: -1).
struct Body {
    int file;
    std::uint64_t at;
    std::size_t length;
};

struct Outgoing {
    std::string header;
    Body body;
};

// Bytes are due one after the other at `rate` a second (0: at once), the first `delay_s` seconds from now; below 0: the
// first of them have been due before.
struct Spacing {
    double delay_s;
    double rate;
};

// Set by one thread, seen by another that sends.
using Halt = std::atomic<bool>;

struct Sent {
    int error;
    std::size_t frames;
};

// Headers and bodies in order, each frame when it is due, until `halt` is set between two of them. An errno as of
// `send_rows`, `end_of_stream` where a file is shorter than that, or 0; and how many frames went out whole. `timeout_s`
// is what each may take from when it is due. The socket must not block: a file's bytes go without being copied.
Sent send_frames(int socket, const std::vector<Outgoing>& frames, Spacing spacing, const Halt& halt, double timeout_s);

constexpr int end_of_stream = -1;

// The same and the sum of what came (0 unless `summed`); `end_of_stream` where the peer closed before all of it.
std::pair<int, std::uint32_t> receive_rows(int socket, std::vector<iovec> rows, double timeout_s, bool summed = true);

struct Frame {
    int error;
    std::string header;
    std::uint32_t sum;
};

// A header as long as `due`; where it is that very one, `body` too, and its sum. Errors as of `receive_rows`.
Frame receive_frame(int socket, std::string_view due, iovec body, double timeout_s);

}  // namespace vnpu
