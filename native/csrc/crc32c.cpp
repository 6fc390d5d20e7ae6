// CRC-32C, by the widest way that the CPU has (crc32c_wide), else by its instruction. That has a latency of three cycles
// and can start every cycle, so three parts of the data are run side by side and their sums joined:
// crc(A B) = crc(A) * x^(8 |B|) + crc(B) in GF(2)[x] modulo the polynomial.
#include <array>
#include <cstring>
#include <stdexcept>

#include "crc32c_powers.h"
#include "crc32c_wide.h"
#include "digest.h"

#if defined(__x86_64__)
#include <nmmintrin.h>
#define VNPU_CRC_TARGET __attribute__((target("sse4.2")))
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <sys/auxv.h>
#if __has_include(<asm/hwcap.h>)
#include <asm/hwcap.h>
#endif
#define VNPU_CRC_TARGET __attribute__((target("+crc")))
#endif

namespace vnpu {

namespace {

using crc::multiply;

constexpr std::array<std::uint32_t, 256> make_table() {
    std::array<std::uint32_t, 256> table{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t sum = byte;
        for (int bit = 0; bit < 8; ++bit) {
            sum = crc::times_x(sum);
        }
        table[byte] = sum;
    }
    return table;
}

std::uint32_t update_portable(std::uint32_t sum, const unsigned char* data, std::size_t length) {
    static constexpr std::array<std::uint32_t, 256> table = make_table();
    for (std::size_t i = 0; i < length; ++i) {
        sum = (sum >> 8) ^ table[(sum ^ data[i]) & 0xff];
    }
    return sum;
}

#if defined(__x86_64__) || defined(__aarch64__)

constexpr std::size_t part = 8192;
constexpr std::uint32_t shift_one_part = crc::shift_by(part);
constexpr std::uint32_t shift_two_parts = crc::shift_by(2 * part);

std::uint64_t load(const unsigned char* data) {
    std::uint64_t word = 0;
    std::memcpy(&word, data, sizeof word);
    return word;
}

VNPU_CRC_TARGET inline std::uint32_t step(std::uint32_t sum, std::uint64_t word) {
#if defined(__x86_64__)
    return static_cast<std::uint32_t>(_mm_crc32_u64(sum, word));
#else
    return __crc32cd(sum, word);
#endif
}

VNPU_CRC_TARGET std::uint32_t update_three_parts(std::uint32_t sum, const unsigned char* data) {
    std::uint32_t first = sum;
    std::uint32_t second = 0;
    std::uint32_t third = 0;
    for (std::size_t i = 0; i < part; i += sizeof(std::uint64_t)) {
        first = step(first, load(data + i));
        second = step(second, load(data + part + i));
        third = step(third, load(data + 2 * part + i));
    }
    return multiply(first, shift_two_parts) ^ multiply(second, shift_one_part) ^ third;
}

VNPU_CRC_TARGET std::uint32_t update_hardware(std::uint32_t sum, const unsigned char* data, std::size_t length) {
    for (; length >= 3 * part; data += 3 * part, length -= 3 * part) {
        sum = update_three_parts(sum, data);
    }
    for (; length >= sizeof(std::uint64_t); data += sizeof(std::uint64_t), length -= sizeof(std::uint64_t)) {
        sum = step(sum, load(data));
    }
    return update_portable(sum, data, length);
}

bool has_hardware() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("sse4.2") != 0;
#else
    return (::getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
#endif
}

#else

std::uint32_t update_hardware(std::uint32_t sum, const unsigned char* data, std::size_t length) {
    return update_portable(sum, data, length);
}

bool has_hardware() { return false; }

#endif

std::uint32_t update_best(std::uint32_t sum, const unsigned char* data, std::size_t length) {
    const std::size_t wide = has_wide() ? length / wide_step * wide_step : 0;
    if (wide != 0) {
        sum = update_wide(sum, data, wide);
    }
    return update_hardware(sum, data + wide, length - wide);
}

using Update = std::uint32_t (*)(std::uint32_t, const unsigned char*, std::size_t);

Update find_update(const std::string& kernel) {
    if (!kernel.empty() && kernel != "portable" && kernel != "instruction") {
        throw std::invalid_argument("crc32c kernel '" + kernel + "' is unknown: use 'portable', 'instruction' or nothing");
    }
    static const bool hardware = has_hardware();
    if (kernel == "portable" || !hardware) {
        return update_portable;
    }
    return kernel.empty() ? update_best : update_hardware;
}

}  // namespace

std::uint32_t crc32c(const void* data, std::size_t length, std::uint32_t init, const std::string& kernel) {
    return ~find_update(kernel)(~init, static_cast<const unsigned char*>(data), length);
}

std::uint32_t crc32c_fold(const std::vector<SummedPart>& parts) {
    std::uint32_t whole = 0;
    std::size_t known = 0;
    std::uint32_t shift = crc::one;
    for (const SummedPart& part : parts) {
        if (part.length != known) {
            known = part.length;
            shift = crc::shift_by(known);
        }
        whole = multiply(whole, shift) ^ part.sum;
    }
    return whole;
}

}  // namespace vnpu
