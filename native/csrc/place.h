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

// Throws std::invalid_argument where boxes are none, leave a region or wrap around the end of memory, or the regions
// overlap.
void check_boxes(const std::vector<PlaceBox>& boxes, Region destination, Region source);

// Calls `visit` with both offsets of each row, in the order of the loops.
template <typename Visit>
void each_row(const PlaceBox& box, Visit visit) {
    const auto& [a, b, c, d] = box.dims;
    for (std::size_t i = 0; i != a.count; ++i) {
        for (std::size_t j = 0; j != b.count; ++j) {
            for (std::size_t k = 0; k != c.count; ++k) {
                std::size_t to = i * a.destination_stride + j * b.destination_stride + k * c.destination_stride;
                std::size_t from = i * a.source_stride + j * b.source_stride + k * c.source_stride;
                to += box.destination;
                from += box.source;
                for (std::size_t l = 0; l != d.count; ++l) {
                    visit(to, from);
                    to += d.destination_stride;
                    from += d.source_stride;
                }
            }
        }
    }
}

}  // namespace vnpu
