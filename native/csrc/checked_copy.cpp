#include <algorithm>

#include "digest.h"
#include "kernels.h"

namespace vnpu {

namespace {

// Summed and then copied while it is in the second-level cache: memory is read once. A multiple of what the sum takes in
// one go (24 KiB), or it is half as fast.
constexpr std::size_t piece = 96 << 10;

}  // namespace

std::uint32_t checked_copy(void* destination, const void* source, std::size_t length, std::uint32_t init) {
    static const CopyKernel& kernel = find_copy_kernel("");
    auto* to = static_cast<unsigned char*>(destination);
    const auto* from = static_cast<const unsigned char*>(source);
    for (std::size_t at = 0; at < length; at += piece) {
        const std::size_t size = std::min(piece, length - at);
        init = crc32c(from + at, size, init, "");
        kernel.copy(to + at, from + at, size);
    }
    kernel.publish();
    return init;
}

}  // namespace vnpu
