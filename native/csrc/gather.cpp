// One pass: a row is summed in the registers that copy it, where the CPU sums so and rows are as long as it likes; else
// it is summed while it is in the first-level cache.
#include "gather.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "crc32c_wide.h"
#include "digest.h"
#include "rows.h"

namespace vnpu {

namespace {

constexpr std::size_t piece = 24576;  // stays in the first-level cache; what the sum takes in one go

// Destinations anew: end to end.
void lay(std::vector<PlaceBox>& boxes) {
    std::size_t end = 0;
    for (PlaceBox& box : boxes) {
        box.destination = end;
        std::size_t width = box.length;
        for (auto dim = box.dims.rbegin(); dim != box.dims.rend(); ++dim) {
            dim->destination_stride = width;
            if (__builtin_mul_overflow(width, dim->count, &width)) {
                throw std::invalid_argument("a box wraps around the end of memory");
            }
        }
        if (__builtin_add_overflow(end, width, &end)) {
            throw std::invalid_argument("a box wraps around the end of memory");
        }
    }
}

std::vector<Row> rows_of(const std::vector<PlaceBox>& boxes, Region source) {
    const auto* const from = reinterpret_cast<const char*>(source.base);
    std::vector<Row> rows;
    rows.reserve(1024);
    for (const PlaceBox& box : boxes) {
        if (box.length != 0) {
            each_row(box, [&](std::size_t, std::size_t at) { rows.push_back({from + at, box.length}); });
        }
    }
    return rows;
}

std::uint32_t gather_by_pieces(char* to, const std::vector<Row>& rows) {
    const char* summed = to;
    std::uint32_t sum = 0;
    for (std::size_t i = 0; i != rows.size(); ++i) {
        ask_ahead(rows, i);
        std::memcpy(to, rows[i].data, rows[i].length);
        to += rows[i].length;
        for (; to - summed >= static_cast<std::ptrdiff_t>(piece); summed += piece) {
            sum = crc32c(summed, piece, sum, "");
        }
    }
    return crc32c(summed, static_cast<std::size_t>(to - summed), sum, "");
}

bool wide(const std::vector<Row>& rows) {
    return has_wide() && !rows.empty() &&
           std::all_of(rows.begin(), rows.end(), [](const Row& row) { return row.length % wide_step == 0; });
}

}  // namespace

std::uint32_t gather(std::vector<PlaceBox> boxes, Region destination, Region source) {
    lay(boxes);
    check_boxes(boxes, destination, source);
    auto* const to = reinterpret_cast<char*>(destination.base);
    const std::vector<Row> rows = rows_of(boxes, source);
    return wide(rows) ? ~update_wide_gathering(~std::uint32_t{0}, to, rows) : gather_by_pieces(to, rows);
}

}  // namespace vnpu
