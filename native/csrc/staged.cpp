#include "staged.h"

#include <algorithm>
#include <cstddef>
#include <span>
#include <stdexcept>

#include "crc32c_wide.h"
#include "deadline.h"
#include "digest.h"
#include "gather.h"
#include "kernels.h"
#include "wire.h"

namespace vnpu {

namespace {

// Received at once. Of 16 to 256 KiB, 64 and 96 took least: with smaller ones the reader waits for the socket more often,
// with larger ones bytes have left the nearest caches before they are placed.
constexpr std::size_t piece = 64 << 10;

constexpr std::size_t header_bytes = 24;
constexpr std::size_t sum_at = 16;
constexpr std::size_t check_at = 20;

void put(std::string& bytes, std::size_t at, std::uint32_t value) {
    for (const int shift : {24, 16, 8, 0}) {
        bytes[at++] = static_cast<char>(value >> shift);
    }
}

// The body's sum, and then the header's own.
void seal(std::string& header, std::uint32_t sum) {
    const std::size_t start = header.size() - header_bytes;
    put(header, start + sum_at, sum);
    put(header, start + check_at, crc32c(header.data() + start, check_at, 0, ""));
}

// How many of the rows fill a piece, one at least, and their bytes.
std::pair<std::size_t, std::size_t> first_piece(std::span<const Place> rows) {
    std::size_t count = 1;
    std::size_t bytes = rows.front().length;
    while (count != rows.size() && bytes + rows[count].length <= piece) {
        bytes += rows[count++].length;
    }
    return {count, bytes};
}

void must_fill(Region stage, std::size_t bytes) {
    if (stage.size != bytes) {
        throw std::invalid_argument("rows of " + std::to_string(bytes) + " bytes do not fill a stage of " +
                                    std::to_string(stage.size));
    }
}

}  // namespace

int send_gathered(int socket, std::string header, const std::vector<PlaceBox>& boxes, Region stage, Region source,
                  double timeout_s) {
    if (header.size() < header_bytes) {
        throw std::invalid_argument("a frame's header is longer");
    }
    const auto deadline = deadline_after(timeout_s);
    const Gathered gathered = gather(boxes, stage, source);
    must_fill(stage, gathered.bytes);
    seal(header, gathered.sum);
    return send_rows(socket, {{header.data(), header.size()}, {reinterpret_cast<void*>(stage.base), stage.size}},
                     seconds_until(deadline));
}

std::pair<int, std::uint32_t> receive_scattered(int socket, std::vector<PlaceBox> boxes, Region destination,
                                                Region stage, double timeout_s) {
    const Places places = places_of(boxes, destination, stage);
    must_fill(stage, places.bytes);
    auto* const from = reinterpret_cast<char*>(stage.base);
    if (!places.wide) {
        const int error = receive_rows(socket, {{from, stage.size}}, timeout_s, false).first;
        return {error, error == 0 ? scatter(std::move(boxes), destination, stage) : 0};
    }
    const auto deadline = deadline_after(timeout_s);
    std::uint32_t sum = ~std::uint32_t{0};
    int error = 0;
    for (std::span<const Place> rows(places.rows); error == 0 && !rows.empty();) {
        const auto [count, bytes] = first_piece(rows);
        error = receive_rows(socket, {{from, bytes}}, seconds_until(deadline), false).first;
        if (error == 0) {
            sum = update_wide_scattering(sum, rows.first(count), from);
        }
        rows = rows.subspan(count);
    }
    find_copy_kernel("").publish();
    return {error, ~sum};
}

}  // namespace vnpu
