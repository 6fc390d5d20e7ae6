// Powers of x modulo CRC-32C's polynomial: what joins the sums of parts. Bit-reversed throughout: the highest bit is the
// coefficient of x^0.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vnpu::crc {

inline constexpr std::uint32_t polynomial = 0x82f63b78;
inline constexpr std::uint32_t one = 0x80000000;

constexpr std::uint32_t times_x(std::uint32_t a) { return (a >> 1) ^ ((a & 1) != 0 ? polynomial : 0); }

constexpr std::uint32_t multiply(std::uint32_t a, std::uint32_t b) {
    std::uint32_t product = 0;
    for (std::uint32_t bit = one; bit != 0; bit >>= 1) {
        product ^= (a & bit) != 0 ? b : 0;
        b = times_x(b);
    }
    return product;
}

// x^n.
constexpr std::uint32_t power(std::size_t n) {
    std::uint32_t result = one;
    std::uint32_t square = times_x(one);
    for (; n != 0; n >>= 1) {
        result = (n & 1) != 0 ? multiply(result, square) : result;
        square = multiply(square, square);
    }
    return result;
}

// What appending n bytes multiplies a sum by.
constexpr std::uint32_t shift_by(std::size_t n) { return power(8 * n); }

}  // namespace vnpu::crc
