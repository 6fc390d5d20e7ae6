// After "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ" (Gopal et al., Intel 2009), by four registers of
// four 128-bit lanes: each lane is multiplied by the power of x that its distance to the data it is added to stands for,
// so that what is left at the end is congruent to all of it. One instruction of the CRC kind then reduces the last lane.
#include "crc32c_wide.h"

#include <algorithm>

#include "crc32c_powers.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define VNPU_WIDE_TARGET __attribute__((target("avx512f,vpclmulqdq,pclmul,sse4.2")))
#endif

namespace vnpu {

#if defined(__x86_64__)

namespace {

// A lane's first eight bytes have degrees 64 above the last eight's; reading the product of two reversed factors (64 and
// 32 bits) as a reversed number of 128 bits is worth another x^33.
template <std::size_t bits>
constexpr long long first_half = crc::power(bits + 64 - 33);
template <std::size_t bits>
constexpr long long last_half = crc::power(bits - 33);

template <std::size_t bits>
VNPU_WIDE_TARGET inline __m512i further(__m512i lanes, __m512i data) {
    const __m512i by = _mm512_set4_epi64(last_half<bits>, first_half<bits>, last_half<bits>, first_half<bits>);
    const __m512i first = _mm512_clmulepi64_epi128(lanes, by, 0x00);
    const __m512i last = _mm512_clmulepi64_epi128(lanes, by, 0x11);
    return _mm512_ternarylogic_epi64(first, last, data, 0x96);  // all three xored
}

VNPU_WIDE_TARGET inline __m128i further_lane(__m128i lane, __m128i data) {
    const __m128i by = _mm_set_epi64x(last_half<128>, first_half<128>);
    const __m128i product = _mm_xor_si128(_mm_clmulepi64_si128(lane, by, 0x00), _mm_clmulepi64_si128(lane, by, 0x11));
    return _mm_xor_si128(product, data);
}

VNPU_WIDE_TARGET std::uint32_t reduce(__m512i lanes) {
    alignas(64) __m128i each[4];  // not extracted: GCC 12 warns of a value in its own header
    _mm512_store_si512(each, lanes);
    const __m128i lane = further_lane(further_lane(further_lane(each[0], each[1]), each[2]), each[3]);
    const auto low = static_cast<std::uint64_t>(_mm_extract_epi64(lane, 0));
    const auto high = static_cast<std::uint64_t>(_mm_extract_epi64(lane, 1));
    return static_cast<std::uint32_t>(_mm_crc32_u64(_mm_crc32_u64(0, low), high));
}

enum class Stores { none, streamed, kept };

// The four registers of `wide_step` bytes, stored on where that is wanted.
template <Stores stores>
struct Step {
    __m512i a, b, c, d;

    VNPU_WIDE_TARGET Step(void* to, const void* from) {
        const auto* const data = static_cast<const unsigned char*>(from);
        a = _mm512_loadu_si512(data);
        b = _mm512_loadu_si512(data + 64);
        c = _mm512_loadu_si512(data + 128);
        d = _mm512_loadu_si512(data + 192);
        auto* const out = static_cast<unsigned char*>(to);
        if constexpr (stores == Stores::streamed) {
            _mm512_stream_si512(reinterpret_cast<__m512i*>(out), a);
            _mm512_stream_si512(reinterpret_cast<__m512i*>(out + 64), b);
            _mm512_stream_si512(reinterpret_cast<__m512i*>(out + 128), c);
            _mm512_stream_si512(reinterpret_cast<__m512i*>(out + 192), d);
        } else if constexpr (stores == Stores::kept) {
            _mm512_storeu_si512(out, a);
            _mm512_storeu_si512(out + 64, b);
            _mm512_storeu_si512(out + 128, c);
            _mm512_storeu_si512(out + 192, d);
        }
    }

    // What came before these bytes.
    VNPU_WIDE_TARGET void begin(std::uint32_t sum) {
        a = _mm512_xor_si512(a, _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(sum))));
    }

    // What comes behind them.
    VNPU_WIDE_TARGET void go_on(const Step& next) {
        constexpr std::size_t bits = 8 * wide_step;
        a = further<bits>(a, next.a);
        b = further<bits>(b, next.b);
        c = further<bits>(c, next.c);
        d = further<bits>(d, next.d);
    }

    VNPU_WIDE_TARGET std::uint32_t sum() const {
        return reduce(further<512>(further<512>(further<512>(a, b), c), d));
    }
};

template <Stores stores>
VNPU_WIDE_TARGET std::uint32_t update(std::uint32_t sum, unsigned char* to, const unsigned char* data,
                                      std::size_t length) {
    Step<stores> all(to, data);
    all.begin(sum);
    for (std::size_t at = wide_step; at != length; at += wide_step) {
        all.go_on(Step<stores>(stores == Stores::none ? nullptr : to + at, data + at));
    }
    return all.sum();
}

template <Stores stores>
VNPU_WIDE_TARGET std::uint32_t update_rows(std::uint32_t sum, char* to, std::span<const Row> rows) {
    Ahead ahead(rows);
    ahead.step<wide_step>();
    Step<stores> all(to, rows.front().data);
    all.begin(sum);
    std::size_t done = wide_step;  // of this row
    for (const Row& row : rows) {
        for (; done != row.length; done += wide_step) {
            ahead.step<wide_step>();
            all.go_on(Step<stores>(stores == Stores::none ? nullptr : to + done, row.data + done));
        }
        if constexpr (stores != Stores::none) {
            to += done;
        }
        done = 0;
    }
    return all.sum();
}

VNPU_WIDE_TARGET std::uint32_t scatter_rows(std::uint32_t sum, std::span<const Place> rows, const char* from) {
    Step<Stores::streamed> all(rows.front().data, from);
    all.begin(sum);
    std::size_t done = wide_step;  // of this row
    for (const Place& row : rows) {
        for (; done != row.length; done += wide_step) {
            all.go_on(Step<Stores::streamed>(row.data + done, from + done));
        }
        from += done;
        done = 0;
    }
    return all.sum();
}

}  // namespace

bool has_wide() {
    static const bool has = __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("vpclmulqdq") != 0 &&
                            __builtin_cpu_supports("pclmul") != 0 && __builtin_cpu_supports("sse4.2") != 0;
    return has;
}

bool wide(std::span<const Row> rows) {
    const auto whole = [](const Row& row) { return row.length != 0 && row.length % wide_step == 0; };
    return has_wide() && !rows.empty() && std::all_of(rows.begin(), rows.end(), whole);
}

std::uint32_t update_wide(std::uint32_t sum, const unsigned char* data, std::size_t length) {
    return update<Stores::none>(sum, nullptr, data, length);
}

std::uint32_t update_wide_copying(std::uint32_t sum, unsigned char* to, const unsigned char* data, std::size_t length) {
    return update<Stores::streamed>(sum, to, data, length);
}

std::uint32_t update_wide_rows(std::uint32_t sum, std::span<const Row> rows) {
    return update_rows<Stores::none>(sum, nullptr, rows);
}

std::uint32_t update_wide_gathering(std::uint32_t sum, char* to, std::span<const Row> rows) {
    return update_rows<Stores::kept>(sum, to, rows);
}

std::uint32_t update_wide_scattering(std::uint32_t sum, std::span<const Place> rows, const char* from) {
    return scatter_rows(sum, rows, from);
}

#else

bool has_wide() { return false; }

bool wide(std::span<const Row>) { return false; }

std::uint32_t update_wide(std::uint32_t sum, const unsigned char*, std::size_t) { return sum; }

std::uint32_t update_wide_copying(std::uint32_t sum, unsigned char*, const unsigned char*, std::size_t) { return sum; }

std::uint32_t update_wide_rows(std::uint32_t sum, std::span<const Row>) { return sum; }

std::uint32_t update_wide_gathering(std::uint32_t sum, char*, std::span<const Row>) { return sum; }

std::uint32_t update_wide_scattering(std::uint32_t sum, std::span<const Place>, const char*) { return sum; }

#endif

}  // namespace vnpu
