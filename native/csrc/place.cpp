// KV blocks are moved in rows of a few hundred bytes. Written through the caches each row would be read first; streamed
// line by line it is not, as long as a row holds whole lines. Boxes come sorted so that lines are filled upwards.
#include "place.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace vnpu {

namespace {

constexpr std::size_t line = 64;
constexpr std::size_t long_row = 16384;  // from here on the kernels for long ranges, which unroll further, are as good
constexpr std::size_t ahead = 2048;      // bytes that are asked for before they are copied: memory takes as long

// `next`: where a row that comes soon after this one begins. It is asked for while this one is copied: the processor's
// own prefetchers know neither the gaps between rows nor where pages go on.
using RowCopy = void (*)(char* to, const char* from, std::size_t length, const char* next);

// Read once, so past the second-level cache: what is written there is read again soon.
void row_plain(char* to, const char* from, std::size_t length, const char* next) {
    for (std::size_t at = 0; at < length; at += line) {
        __builtin_prefetch(next + at, 0, 0);
    }
    std::memcpy(to, from, length);
}

// Whole lines through `stream`; what is before the first and after the last plainly.
template <auto stream>
void row_streaming(char* to, const char* from, std::size_t length, const char* next) {
    for (std::size_t at = 0; at < length; at += line) {
        __builtin_prefetch(next + at, 0, 0);
    }
    const std::size_t head = (line - reinterpret_cast<std::uintptr_t>(to) % line) % line;
    if (length < head + line) {
        std::memcpy(to, from, length);
        return;
    }
    if (head != 0) {
        std::memcpy(to, from, head);
    }
    const std::size_t middle = (length - head) / line * line;
    stream(to + head, from + head, middle);
    if (const std::size_t tail = length - head - middle; tail != 0) {
        std::memcpy(to + head + middle, from + head + middle, tail);
    }
}

#if defined(__x86_64__)

__attribute__((target("avx512f"))) void lines_avx512(char* to, const char* from, std::size_t length) {
    for (const char* const end = from + length; from != end; from += line, to += line) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
    }
}

__attribute__((target("avx2"))) void lines_avx2(char* to, const char* from, std::size_t length) {
    for (const char* const end = from + length; from != end; from += line, to += line) {
        const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32));
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to), a);
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 32), b);
    }
}

#elif defined(__aarch64__)

void lines_neon(char* to, const char* from, std::size_t length) {
    for (const char* const end = from + length; from != end; from += line, to += line) {
        asm volatile(
            "ldp q0, q1, [%1]\n\t"
            "ldp q2, q3, [%1, #32]\n\t"
            "stnp q0, q1, [%0]\n\t"
            "stnp q2, q3, [%0, #32]"
            :
            : "r"(to), "r"(from)
            : "v0", "v1", "v2", "v3", "memory");
    }
}

#endif

RowCopy row_copy(const std::string& kernel) {
#if defined(__x86_64__)
    if (kernel == "avx512") return row_streaming<lines_avx512>;
    if (kernel == "avx2") return row_streaming<lines_avx2>;
#elif defined(__aarch64__)
    if (kernel == "neon") return row_streaming<lines_neon>;
#endif
    return row_plain;
}

// One past the last byte that a box touches on one side; throws where that does not fit into a size.
std::size_t end_of(const PlaceBox& box, std::size_t start, std::size_t PlaceDim::* stride) {
    std::size_t end = 0;
    bool wraps = __builtin_add_overflow(start, box.length, &end);
    for (const PlaceDim& dim : box.dims) {
        std::size_t reach = 0;
        wraps |= __builtin_mul_overflow(dim.count - 1, dim.*stride, &reach) || __builtin_add_overflow(end, reach, &end);
    }
    if (wraps) {
        throw std::invalid_argument("a box wraps around the end of memory");
    }
    return end;
}

template <typename Copy>
std::size_t copy_box(const PlaceBox& box, Region destination, Region source, Copy copy) {
    auto* const to = reinterpret_cast<char*>(destination.base);
    const auto* const from = reinterpret_cast<const char*>(source.base);
    const PlaceDim& last = box.dims.back();
    const std::size_t next = std::clamp<std::size_t>(ahead / std::max<std::size_t>(box.length, 1), 1, 8) * last.source_stride;
    std::size_t rows = 0;
    each_row(box, [&](std::size_t row_to, std::size_t row_from) {
        copy(to + row_to, from + row_from, box.length, from + row_from + next);
        ++rows;
    });
    return rows * box.length;
}

}  // namespace

void check_boxes(const std::vector<PlaceBox>& boxes, Region destination, Region source) {
    for (const Region& region : {destination, source}) {
        if (region.base > std::numeric_limits<std::uintptr_t>::max() - region.size) {
            throw std::invalid_argument("a region wraps around the end of memory");
        }
    }
    if (destination.base < source.base + source.size && source.base < destination.base + destination.size) {
        throw std::invalid_argument("the two regions overlap");
    }
    for (const PlaceBox& box : boxes) {
        if (std::any_of(box.dims.begin(), box.dims.end(), [](const PlaceDim& dim) { return dim.count == 0; })) {
            throw std::invalid_argument("a box has a loop of no steps");
        }
        if (end_of(box, box.destination, &PlaceDim::destination_stride) > destination.size) {
            throw std::invalid_argument("a box leaves the destination's region");
        }
        if (end_of(box, box.source, &PlaceDim::source_stride) > source.size) {
            throw std::invalid_argument("a box leaves the source's region");
        }
    }
}

std::size_t place(const std::vector<PlaceBox>& boxes, Region destination, Region source, const std::string& kernel) {
    const CopyKernel& whole = find_copy_kernel(kernel);
    check_boxes(boxes, destination, source);
    const RowCopy row = row_copy(whole.name);
    const auto whole_row = [&whole](char* to, const char* from, std::size_t length, const char*) {
        whole.copy(to, from, length);
    };
    std::size_t bytes = 0;
    for (const PlaceBox& box : boxes) {
        bytes += box.length < long_row ? copy_box(box, destination, source, row)
                                       : copy_box(box, destination, source, whole_row);
    }
    whole.publish();
    return bytes;
}

}  // namespace vnpu
