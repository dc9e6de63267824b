// Integer products of 32 columns on AVX2. Included inside a namespace, with the instruction set switched on.
//
// There is an instruction for products of unsigned and signed bytes, but its sums of two saturate at 16 bits. Four-bit
// values are small enough for it, and for sums of a whole group in 16 bits. Values of eight bits are widened to words.

// Inputs of int8 matrices are words, of every four columns (0, 2) and (1, 3) together: the order in which masking and
// shifting a word of four bytes gives them.
template <bool kWide> constexpr std::size_t kInt8InputBytes = 64;
constexpr int kInt8Layout = 2;

template <bool kWide> INLINE void arrange_int8_inputs(Ints first, Ints second, std::int32_t* out) {
    store_words_even_odd(out, first);
    store_words_even_odd(out + 8, second);
}

// dot[t][r] = sum over 32 columns of (value of tile t) * (input r), the value being the stored byte minus 128.
template <int T, int R, bool kWide>
INLINE void dot_int8(const std::byte* w, std::size_t tile_step, const std::int32_t* sums, const std::int32_t* x,
                     Ints (&dot)[T][R]) {
    for (int t = 0; t < T; ++t)
        for (int r = 0; r < R; ++r) dot[t][r] = fill_ints(-128 * sums[r]);
    const __m256i mask = _mm256_set1_epi16(0x00ff);
    for (int step = 0; step < 8; ++step) {
        const std::int32_t* even = x + 2 * step * R;
        const std::int32_t* odd = even + R;
        for (int t = 0; t < T; ++t) {
            const auto* bytes = reinterpret_cast<const __m256i*>(w + t * tile_step + step * 64);
            const __m256i low = _mm256_loadu_si256(bytes), high = _mm256_loadu_si256(bytes + 1);
            const __m256i low_even = _mm256_and_si256(low, mask), high_even = _mm256_and_si256(high, mask);
            const __m256i low_odd = _mm256_srli_epi16(low, 8), high_odd = _mm256_srli_epi16(high, 8);
            for (int r = 0; r < R; ++r) {
                const __m256i e = _mm256_set1_epi32(even[r]), o = _mm256_set1_epi32(odd[r]);
                Ints& d = dot[t][r];
                d.low = _mm256_add_epi32(d.low, _mm256_madd_epi16(low_even, e));
                d.high = _mm256_add_epi32(d.high, _mm256_madd_epi16(high_even, e));
                d.low = _mm256_add_epi32(d.low, _mm256_madd_epi16(low_odd, o));
                d.high = _mm256_add_epi32(d.high, _mm256_madd_epi16(high_odd, o));
            }
        }
    }
}

// dot[t][r] = sum over 32 columns of (value of tile t, 0 .. 15) * (input r). Inputs are bytes; wide ones two planes of
// bytes, x = 256 high + low.
template <int T, int R, bool kWide>
INLINE void dot_int4(const std::byte* w, std::size_t tile_step, const std::int32_t* x, Ints (&dot)[T][R]) {
    const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (int t = 0; t < T; ++t) {
        // |sums of eight products of two| <= 8 * 2 * 15 * 128 < 2^15
        Ints words[R];
        for (int r = 0; r < R; ++r) words[r] = fill_ints(0);
        const auto add_plane = [&](const std::int32_t* plane) {
            for (int step = 0; step < 4; ++step) {
                const auto* bytes = reinterpret_cast<const __m256i*>(w + t * tile_step + step * 64);
                const __m256i low = _mm256_loadu_si256(bytes), high = _mm256_loadu_si256(bytes + 1);
                const __m256i low_first = _mm256_and_si256(low, mask), high_first = _mm256_and_si256(high, mask);
                for (int r = 0; r < R; ++r) {
                    const __m256i in = _mm256_set1_epi32(plane[step * R + r]);
                    words[r].low = _mm256_add_epi16(words[r].low, _mm256_maddubs_epi16(low_first, in));
                    words[r].high = _mm256_add_epi16(words[r].high, _mm256_maddubs_epi16(high_first, in));
                }
                const __m256i low_last = _mm256_and_si256(_mm256_srli_epi16(low, 4), mask);
                const __m256i high_last = _mm256_and_si256(_mm256_srli_epi16(high, 4), mask);
                for (int r = 0; r < R; ++r) {
                    const __m256i in = _mm256_set1_epi32(plane[(step + 4) * R + r]);
                    words[r].low = _mm256_add_epi16(words[r].low, _mm256_maddubs_epi16(low_last, in));
                    words[r].high = _mm256_add_epi16(words[r].high, _mm256_maddubs_epi16(high_last, in));
                }
            }
        };
        if constexpr (kWide) {
            const __m256i factor = _mm256_set1_epi16(256);
            add_plane(x);
            for (int r = 0; r < R; ++r) {
                dot[t][r] = {_mm256_madd_epi16(words[r].low, factor), _mm256_madd_epi16(words[r].high, factor)};
                words[r] = fill_ints(0);
            }
            add_plane(x + 8 * R);
            for (int r = 0; r < R; ++r)
                dot[t][r] = dot[t][r] + Ints{_mm256_madd_epi16(words[r].low, ones), _mm256_madd_epi16(words[r].high, ones)};
        } else {
            add_plane(x);
            for (int r = 0; r < R; ++r)
                dot[t][r] = {_mm256_madd_epi16(words[r].low, ones), _mm256_madd_epi16(words[r].high, ones)};
        }
    }
}

// Of sixteen pairs of bf16, the first of each and the second of each as floats.
struct FloatPairs {
    Floats first, second;
};
INLINE FloatPairs load_bf16_pairs(const void* p) {
    const auto* at = static_cast<const __m256i*>(p);
    const __m256i low = _mm256_loadu_si256(at), high = _mm256_loadu_si256(at + 1);
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    return {{_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))},
            {_mm256_castsi256_ps(_mm256_and_si256(low, mask)), _mm256_castsi256_ps(_mm256_and_si256(high, mask))}};
}

#include "bf16_as_floats.hpp"
