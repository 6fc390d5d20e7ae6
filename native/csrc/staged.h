// Rows of a few hundred bytes through a stream socket by way of a stage, in one call: a caller in Python would take its
// lock between the two steps, and another lane's thread has it then.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "place.h"

namespace vnpu {

// `gather` into `stage`, which the rows fill, then `header` and all of it into the socket. The header is that of a frame
// (transfer/transports/frame.py) whose sums are still to be put in; what is held back before it may stand in front of it.
// 0 or an errno, as `send_rows`. Throws as `place`, and where the rows are fewer bytes or the header is none; nothing was
// sent then.
int send_gathered(int socket, std::string header, const std::vector<PlaceBox>& boxes, Region stage, Region source,
                  double timeout_s);

// What `stage` has room for out of the socket, and `scatter` of it, a piece at a time where the CPU sums rows while it
// streams them: so the stage stays in the nearest caches. An error as of `receive_rows`, and the CRC-32C of what came.
// Throws as `send_gathered`; nothing was read then.
std::pair<int, std::uint32_t> receive_scattered(int socket, std::vector<PlaceBox> boxes, Region destination,
                                                Region stage, double timeout_s);

}  // namespace vnpu
