// Bytes of many rows through one stream socket, with their sum, and no work for each row outside of here.
#pragma once

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

constexpr int end_of_stream = -1;

// The same and the sum of what came; `end_of_stream` where the peer closed before all of it.
std::pair<int, std::uint32_t> receive_rows(int socket, std::vector<iovec> rows, double timeout_s);

struct Frame {
    int error;
    std::string header;
    std::uint32_t sum;
};

// A header as long as `due`; where it is that very one, `body` too, and its sum. Errors as of `receive_rows`.
Frame receive_frame(int socket, std::string_view due, iovec body, double timeout_s);

}  // namespace vnpu
