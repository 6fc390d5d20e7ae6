// Strided copies: nests of at most four loops around one contiguous row, checked against both regions first.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace vnpu {

struct PlaceDim {
    std::size_t count = 1;
    std::size_t destination_stride = 0;
    std::size_t source_stride = 0;
};

constexpr std::size_t place_dims = 4;

// Offsets are from the first byte of their region.
struct PlaceBox {
    std::size_t destination;
    std::size_t source;
    std::size_t length;
    std::array<PlaceDim, place_dims> dims;  // outermost first; unused ones count 1
};

struct Region {
    std::uintptr_t base;
    std::size_t size;
};

// Bytes copied. Kernel: one of copy_kernels(), empty for the best; `memcpy` leaves the result in the caches. Throws
// std::invalid_argument, having touched nothing, where a box leaves a region, the regions overlap or the kernel is
// unknown. That boxes do not write the same bytes twice is the caller's to see to.
std::size_t place(const std::vector<PlaceBox>& boxes, Region destination, Region source, const std::string& kernel);

// Rows of the source end to end into the first bytes of `destination`, in the order of the boxes and of their loops
// (where boxes say they go does not count), which stays in the caches; the CRC-32C of what was written. Throws as
// `place`.
std::uint32_t gather(std::vector<PlaceBox> boxes, Region destination, Region source);

}  // namespace vnpu
