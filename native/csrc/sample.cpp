#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "digest.h"

namespace vnpu {

namespace {

constexpr std::size_t longest_stride = std::size_t{1} << 20;
constexpr std::size_t ahead = 16;  // samples whose memory is asked for before it is needed

// The finaliser of splitmix64: every bit of the input changes every bit of the output with probability one half.
std::uint64_t mix(std::uint64_t value) {
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
    value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
    return value ^ (value >> 31);
}

// Independent of the samples before, so that the CPU can work on several while it waits for memory.
std::uint64_t hash_sample(const char* data, std::size_t length) {
    std::uint64_t sum = length;
    for (; length != 0;) {
        std::uint64_t word = 0;
        const std::size_t size = std::min(length, sizeof word);
        std::memcpy(&word, data, size);
        sum = (sum ^ word) * 0x9e3779b97f4a7c15;  // a bijection of each word: one that differs always shows
        sum ^= sum >> 32;
        data += size;
        length -= size;
    }
    return sum;
}

struct Window {
    std::size_t offset;
    std::size_t length;
};

// Sample `index` of a range: one in each stride, then the first bytes, then the last.
Window window(std::size_t length, std::size_t stride, std::size_t width, std::size_t index) {
    const std::size_t strides = (length + stride - 1) / stride;
    if (index >= strides) {
        const std::size_t size = std::min(width, length);
        return {index == strides ? 0 : length - size, size};
    }
    const std::size_t start = index * stride;
    const std::size_t room = std::min(stride, length - start);
    const std::size_t size = std::min(width, room);
    // Mostly whole cache lines: a sample that straddles one more costs a memory access more.
    const std::size_t places = (room - size) / 64 + 1;
    return {start + mix(index) % places * 64, size};
}

}  // namespace

std::uint64_t sample_digest(std::span<const Range> ranges, std::size_t stride, std::size_t width) {
    if (stride > longest_stride || width == 0 || width > stride) {
        throw std::invalid_argument("sample_digest needs 0 < width <= stride <= 1 MiB");
    }
    std::uint64_t digest = mix(stride) ^ mix(width + 1);
    for (const Range& range : ranges) {
        digest = mix(digest ^ range.length);
        if (range.length == 0) {
            continue;
        }
        const auto* base = reinterpret_cast<const char*>(range.address);
        const std::size_t samples = (range.length + stride - 1) / stride + 2;
        for (std::size_t i = 0; i < samples; ++i) {
            if (i + ahead < samples) {
                __builtin_prefetch(base + window(range.length, stride, width, i + ahead).offset);
            }
            const Window sample = window(range.length, stride, width, i);
            digest = mix(digest ^ hash_sample(base + sample.offset, sample.length));
        }
    }
    return digest;
}

}  // namespace vnpu
