// The two halves of strided copies through a buffer that stays in the caches, each with the sum of what it moved: a
// sender's and a receiver's.
#pragma once

#include <cstdint>
#include <vector>

#include "place.h"
#include "rows.h"

namespace vnpu {

struct Gathered {
    std::uint32_t sum;
    std::size_t bytes;
};

// Rows of the source end to end into the first bytes of `destination`, in the order of the boxes and of their loops
// (where boxes say they go does not count), which stays in the caches; the CRC-32C of what was written. Throws as
// `place`.
Gathered gather(std::vector<PlaceBox> boxes, Region destination, Region source);

// The other half: the first bytes of `source` to the rows of the destination (where boxes say they come from does not
// count), past the caches; the CRC-32C of what was read. Throws as `place`.
std::uint32_t scatter(std::vector<PlaceBox> boxes, Region destination, Region source);

// `wide`: the rows are ones that `update_wide_scattering` takes.
struct Places {
    std::vector<Place> rows;
    std::size_t bytes;
    bool wide;
};

// Where `scatter` puts what it reads, and how many bytes that are. In the boxes, rows come end to end from `source`
// afterwards. Throws as `place`.
Places places_of(std::vector<PlaceBox>& boxes, Region destination, Region source);

}  // namespace vnpu
