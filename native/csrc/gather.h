// The sender's half of strided copies: rows end to end, and their sum.
#pragma once

#include <cstdint>
#include <vector>

#include "place.h"

namespace vnpu {

// Rows of the source end to end into the first bytes of `destination`, in the order of the boxes and of their loops
// (where boxes say they go does not count), which stays in the caches; the CRC-32C of what was written. Throws as
// `place`.
std::uint32_t gather(std::vector<PlaceBox> boxes, Region destination, Region source);

}  // namespace vnpu
