// One pass: a row is summed in the registers that copy it, where the CPU sums so and rows are as long as it likes; else
// it is summed while it is in a cache.
#include "gather.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "crc32c_wide.h"
#include "digest.h"
#include "kernels.h"
#include "rows.h"

namespace vnpu {

namespace {

constexpr std::size_t line = 64;
constexpr std::size_t piece = 24576;  // stays in the first-level cache; what the sum takes in one go

// One side of the boxes anew: end to end. Its bytes.
std::size_t lay(std::vector<PlaceBox>& boxes, std::size_t PlaceBox::* start, std::size_t PlaceDim::* stride) {
    std::size_t end = 0;
    for (PlaceBox& box : boxes) {
        box.*start = end;
        std::size_t width = box.length;
        for (auto dim = box.dims.rbegin(); dim != box.dims.rend(); ++dim) {
            (*dim).*stride = width;
            if (__builtin_mul_overflow(width, dim->count, &width)) {
                throw std::invalid_argument("a box wraps around the end of memory");
            }
        }
        if (__builtin_add_overflow(end, width, &end)) {
            throw std::invalid_argument("a box wraps around the end of memory");
        }
    }
    return end;
}

template <typename Kind, typename Find>
std::vector<Kind> rows_of(const std::vector<PlaceBox>& boxes, Find find) {
    std::vector<Kind> rows;
    rows.reserve(1024);
    for (const PlaceBox& box : boxes) {
        if (box.length != 0) {
            each_row(box, [&](std::size_t to, std::size_t from) { rows.push_back({find(to, from), box.length}); });
        }
    }
    return rows;
}

std::uint32_t gather_by_pieces(char* to, const std::vector<Row>& rows) {
    const char* summed = to;
    std::uint32_t sum = 0;
    Ahead ahead(rows);
    for (std::size_t i = 0; i != rows.size(); ++i) {
        ahead.ask(rows[i].length);
        std::memcpy(to, rows[i].data, rows[i].length);
        to += rows[i].length;
        for (; to - summed >= static_cast<std::ptrdiff_t>(piece); summed += piece) {
            sum = crc32c(summed, piece, sum, "");
        }
    }
    return crc32c(summed, static_cast<std::size_t>(to - summed), sum, "");
}

// Whether rows can be streamed to in the registers that sum them.
bool wide(const std::vector<Place>& rows) {
    const auto whole = [](const Place& row) {
        return reinterpret_cast<std::uintptr_t>(row.data) % line == 0 && row.length % wide_step == 0;
    };
    return has_wide() && !rows.empty() && std::all_of(rows.begin(), rows.end(), whole);
}

}  // namespace

Gathered gather(std::vector<PlaceBox> boxes, Region destination, Region source) {
    const std::size_t bytes = lay(boxes, &PlaceBox::destination, &PlaceDim::destination_stride);
    check_boxes(boxes, destination, source);
    auto* const to = reinterpret_cast<char*>(destination.base);
    const auto* const from = reinterpret_cast<const char*>(source.base);
    const auto rows = rows_of<Row>(boxes, [from](std::size_t, std::size_t at) { return from + at; });
    return {wide(rows) ? ~update_wide_gathering(~std::uint32_t{0}, to, rows) : gather_by_pieces(to, rows), bytes};
}

Places places_of(std::vector<PlaceBox>& boxes, Region destination, Region source) {
    Places places{{}, lay(boxes, &PlaceBox::source, &PlaceDim::source_stride), false};
    check_boxes(boxes, destination, source);
    auto* const to = reinterpret_cast<char*>(destination.base);
    places.rows = rows_of<Place>(boxes, [to](std::size_t at, std::size_t) { return to + at; });
    places.wide = wide(places.rows);
    return places;
}

std::uint32_t scatter(std::vector<PlaceBox> boxes, Region destination, Region source) {
    const Places places = places_of(boxes, destination, source);
    const auto* const from = reinterpret_cast<const char*>(source.base);
    if (!places.wide) {
        place(boxes, destination, source, "");
        return crc32c(from, places.bytes, 0, "");
    }
    const std::uint32_t sum = ~update_wide_scattering(~std::uint32_t{0}, places.rows, from);
    find_copy_kernel("").publish();
    return sum;
}

}  // namespace vnpu
