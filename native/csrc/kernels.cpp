// A plain copy of 1 GB reads the destination into the cache before it writes it, and evicts everything else. Streaming
// stores do neither: they reach the memory bus's limit with one or two threads.
#include "kernels.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#if __has_include(<asm/hwcap.h>)
#include <asm/hwcap.h>
#endif
#endif

namespace vnpu {

namespace {

constexpr std::size_t line = 64;
constexpr std::size_t block = 4 * line;  // what one turn of a kernel's loop moves
constexpr std::size_t worth_it = 4096;   // below this, streaming costs more than it saves

void copy_plain(void* destination, const void* source, std::size_t length) {
    std::memcpy(destination, source, length);
}

void publish_plain() {}  // plain stores are ordered by whatever releases them

// Streams the aligned blocks in the middle through `stream`, copies what is before and after them plainly.
template <auto stream>
void copy_streaming(void* destination, const void* source, std::size_t length) {
    auto* to = static_cast<char*>(destination);
    const auto* from = static_cast<const char*>(source);
    if (length < worth_it) {
        copy_plain(to, from, length);
        return;
    }
    const std::size_t head = (line - reinterpret_cast<std::uintptr_t>(to) % line) % line;
    const std::size_t middle = (length - head) / block * block;
    copy_plain(to, from, head);
    stream(to + head, from + head, middle);
    copy_plain(to + head + middle, from + head + middle, length - head - middle);
}

#if defined(__x86_64__)

__attribute__((target("avx512f"))) void stream_avx512(char* to, const char* from, std::size_t length) {
    for (const char* const end = from + length; from != end; from += block, to += block) {
        const __m512i a = _mm512_loadu_si512(from);
        const __m512i b = _mm512_loadu_si512(from + 64);
        const __m512i c = _mm512_loadu_si512(from + 128);
        const __m512i d = _mm512_loadu_si512(from + 192);
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to), a);
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 64), b);
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 128), c);
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 192), d);
    }
}

__attribute__((target("avx2"))) void stream_avx2(char* to, const char* from, std::size_t length) {
    for (const char* const end = from + length; from != end; from += block, to += block) {
        for (std::size_t i = 0; i < block; i += 128) {
            const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
            const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i + 32));
            const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i + 64));
            const __m256i d = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i + 96));
            _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), a);
            _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i + 32), b);
            _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i + 64), c);
            _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i + 96), d);
        }
    }
}

void publish_streamed() { _mm_sfence(); }

std::vector<CopyKernel> detect() {
    std::vector<CopyKernel> kernels;
    if (__builtin_cpu_supports("avx512f")) {
        kernels.push_back({"avx512", copy_streaming<stream_avx512>, publish_streamed});
    }
    if (__builtin_cpu_supports("avx2")) {
        kernels.push_back({"avx2", copy_streaming<stream_avx2>, publish_streamed});
    }
    kernels.push_back({"memcpy", copy_plain, publish_plain});
    return kernels;
}

#elif defined(__aarch64__)

// STNP says that the data will not be used again soon.
void stream_neon(char* to, const char* from, std::size_t length) {
    for (const char* const end = from + length; from != end; from += block, to += block) {
        for (std::size_t i = 0; i < block; i += 64) {
            asm volatile(
                "ldp q0, q1, [%1]\n\t"
                "ldp q2, q3, [%1, #32]\n\t"
                "stnp q0, q1, [%0]\n\t"
                "stnp q2, q3, [%0, #32]"
                :
                : "r"(to + i), "r"(from + i)
                : "v0", "v1", "v2", "v3", "memory");
        }
    }
}

void publish_streamed() { asm volatile("dmb ish" ::: "memory"); }

std::vector<CopyKernel> detect() {
    return {{"neon", copy_streaming<stream_neon>, publish_streamed}, {"memcpy", copy_plain, publish_plain}};
}

#else

std::vector<CopyKernel> detect() { return {{"memcpy", copy_plain, publish_plain}}; }

#endif

}  // namespace

const std::vector<CopyKernel>& copy_kernels() {
    static const std::vector<CopyKernel> kernels = detect();
    return kernels;
}

const CopyKernel& find_copy_kernel(const std::string& name) {
    const auto& kernels = copy_kernels();
    const auto wanted = [&name](const CopyKernel& kernel) { return name.empty() || name == kernel.name; };
    const auto found = std::find_if(kernels.begin(), kernels.end(), wanted);
    if (found == kernels.end()) {
        throw std::invalid_argument("copy kernel '" + name + "' is not one of copy_kernels() on this CPU");
    }
    return *found;
}

// A copy out of zeros that stay in the first-level cache: only the stores reach memory.
void zero(void* destination, std::size_t length) {
    alignas(line) static const std::array<char, std::size_t{1} << 14> zeros{};
    const CopyKernel& kernel = copy_kernels().front();
    auto* to = static_cast<char*>(destination);
    while (length != 0) {
        const std::size_t part = std::min(length, zeros.size());
        kernel.copy(to, zeros.data(), part);
        to += part;
        length -= part;
    }
    kernel.publish();
}

std::vector<std::string> cpu_features() {
    std::vector<std::string> found;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) found.emplace_back("avx512f");
    if (__builtin_cpu_supports("avx2")) found.emplace_back("avx2");
    if (__builtin_cpu_supports("sse4.2")) found.emplace_back("sse4.2");
#elif defined(__aarch64__)
    found.emplace_back("neon");
    if ((::getauxval(AT_HWCAP) & HWCAP_CRC32) != 0) found.emplace_back("crc32");
#endif
    return found;
}

}  // namespace vnpu
