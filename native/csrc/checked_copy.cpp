#include <algorithm>
#include <cstring>

#include "crc32c_wide.h"
#include "digest.h"
#include "kernels.h"

namespace vnpu {

namespace {

// Summed and then copied while it is in the second-level cache: memory is read once. A multiple of what the sum takes in
// one go (24 KiB), or it is half as fast.
constexpr std::size_t piece = 96 << 10;
constexpr std::size_t line = 64;

std::uint32_t copy_by_pieces(unsigned char* to, const unsigned char* from, std::size_t length, std::uint32_t init) {
    static const CopyKernel& kernel = find_copy_kernel("");
    for (std::size_t at = 0; at < length; at += piece) {
        const std::size_t size = std::min(piece, length - at);
        init = crc32c(from + at, size, init, "");
        kernel.copy(to + at, from + at, size);
    }
    kernel.publish();
    return init;
}

std::uint32_t copy_plainly(unsigned char* to, const unsigned char* from, std::size_t length, std::uint32_t init) {
    std::memcpy(to, from, length);
    return crc32c(from, length, init, "");
}

// Summed in the registers that copy it.
std::uint32_t copy_wide(unsigned char* to, const unsigned char* from, std::size_t length, std::uint32_t init) {
    static const CopyKernel& kernel = find_copy_kernel("");  // one that streams: this CPU has AVX-512
    const std::size_t head = (line - reinterpret_cast<std::uintptr_t>(to) % line) % line;
    const std::size_t middle = (length - head) / wide_step * wide_step;
    init = copy_plainly(to, from, head, init);
    init = ~update_wide_copying(~init, to + head, from + head, middle);
    kernel.publish();
    return copy_plainly(to + head + middle, from + head + middle, length - head - middle, init);
}

}  // namespace

std::uint32_t checked_copy(void* destination, const void* source, std::size_t length, std::uint32_t init) {
    auto* to = static_cast<unsigned char*>(destination);
    const auto* from = static_cast<const unsigned char*>(source);
    return has_wide() && length >= 2 * wide_step ? copy_wide(to, from, length, init)
                                                 : copy_by_pieces(to, from, length, init);
}

std::size_t checked_copies(const std::vector<CheckedCopy>& copies) {
    const auto wrong = [](const CheckedCopy& one) {
        return checked_copy(one.destination, one.source, one.length, 0) != one.sum;
    };
    return static_cast<std::size_t>(std::find_if(copies.begin(), copies.end(), wrong) - copies.begin());
}

}  // namespace vnpu
