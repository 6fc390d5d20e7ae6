#include "streams.h"

#include <cerrno>
#include <stdexcept>
#include <string>

#include "book.h"

namespace vnpu {

CopyKind copy_kind(std::string_view name) {
    if (name == "h2d") {
        return CopyKind::host_to_device;
    }
    if (name == "d2h") {
        return CopyKind::device_to_host;
    }
    if (name == "d2d") {
        return CopyKind::device_to_device;
    }
    throw std::invalid_argument("kind '" + std::string(name) + "' is unknown: use h2d, d2h or d2d");
}

void check_copy(const Book& book, std::span<const CopyEntry> entries, CopyKind kind) {
    constexpr std::uint64_t alignment = 64;
    try {
        check_overlaps({entries.begin(), entries.end()});
    } catch (const std::invalid_argument& error) {
        throw errno_error("copy_async", EINVAL, error.what(), "give entries that do not overlap, in two calls else");
    }
    for (const auto& [destination, source, length] : entries) {
        if (kind == CopyKind::device_to_device && (destination | source | length) % alignment != 0) {
            throw errno_error("copy_async", EINVAL, "an entry from device to device is no multiple of 64 bytes",
                              "align both addresses and the length to 64");
        }
        if (kind != CopyKind::device_to_host) {
            book.check_mapped("copy_async", destination, length, true);
        }
        if (kind != CopyKind::host_to_device) {
            book.check_mapped("copy_async", source, length, false);
        }
    }
}

}  // namespace vnpu
