// Integer products of 32 columns on AVX2. Included inside a namespace, with the instruction set switched on.
//
// There is an instruction for products of unsigned and signed bytes, but its sums of two saturate at 16 bits. Four-bit
// values are small enough for it, and for sums of a whole group in 16 bits. Values of eight bits are widened to words.

// Inputs of int8 matrices are words, of every four columns (0, 2) and (1, 3) together: the order in which masking and
// shifting a word of four bytes gives them.
template <bool kWide> constexpr std::size_t kInt8InputBytes = 64;

template <bool kWide> INLINE void arrange_int8_inputs(Ints first, Ints second, std::int32_t* out) {
    store_words_even_odd(out, first);
    store_words_even_odd(out + 8, second);
}

// Adds the products of words (two of each lane) with two, the same for every lane.
INLINE Ints add_word_products(Ints a, Ints words, std::int32_t x) {
    const __m256i in = _mm256_set1_epi32(x);
    return {_mm256_add_epi32(a.low, _mm256_madd_epi16(words.low, in)),
            _mm256_add_epi32(a.high, _mm256_madd_epi16(words.high, in))};
}

// Adds in sixteen bits the products of unsigned bytes with four signed ones, the same for every lane, two by two.
INLINE Ints add_byte_products(Ints a, Ints bytes, std::int32_t x) {
    const __m256i in = _mm256_set1_epi32(x);
    return {_mm256_add_epi16(a.low, _mm256_maddubs_epi16(bytes.low, in)),
            _mm256_add_epi16(a.high, _mm256_maddubs_epi16(bytes.high, in))};
}

// dot[t][r] = offsets[r] + sum over 32 columns of (stored byte of tile t) * (input r).
template <bool kWide, int T, int R>
INLINE void dot_int8(Tiles<T, R> w, const std::int32_t* x, const std::int32_t* offsets, Ints (&dot)[T][R]) {
    UNROLL for (int t = 0; t < T; ++t) {
        UNROLL for (int r = 0; r < R; ++r) dot[t][r] = fill_ints(offsets[r]);
    }
    const __m256i mask = _mm256_set1_epi16(0x00ff);
    for (int step = 0; step < 8; ++step, x += 2 * R)
        UNROLL for (int t = 0; t < T; ++t) {
            const std::byte* at = w.at(t, step * 64);
            w.fetch(at);
            const auto* bytes = reinterpret_cast<const __m256i*>(at);
            const Ints even = {_mm256_and_si256(_mm256_loadu_si256(bytes), mask), _mm256_and_si256(_mm256_loadu_si256(bytes + 1), mask)};
            UNROLL for (int r = 0; r < R; ++r) dot[t][r] = add_word_products(dot[t][r], even, x[r]);
            READ_NO_EARLIER();
            const Ints odd = {_mm256_srli_epi16(_mm256_loadu_si256(bytes), 8), _mm256_srli_epi16(_mm256_loadu_si256(bytes + 1), 8)};
            UNROLL for (int r = 0; r < R; ++r) dot[t][r] = add_word_products(dot[t][r], odd, x[R + r]);
            READ_NO_EARLIER();
        }
}

// words[t][r] = sums of 16 bits of the values of tile t, 0 .. 15, times one plane of bytes of the inputs:
// |sums of eight products of two| <= 8 * 2 * 15 * 128 < 2^15.
template <int T, int R> INLINE void multiply_plane(Tiles<T, R> w, const std::int32_t* plane, Ints (&words)[T][R]) {
    const __m256i mask = _mm256_set1_epi8(15);
    UNROLL for (int t = 0; t < T; ++t) {
        UNROLL for (int r = 0; r < R; ++r) words[t][r] = fill_ints(0);
        for (int step = 0; step < 4; ++step) {
            const std::int32_t* in = plane + step * R;
            const std::byte* at = w.at(t, step * 64);
            w.fetch(at);
            const auto* bytes = reinterpret_cast<const __m256i*>(at);
            const Ints low = {_mm256_and_si256(_mm256_loadu_si256(bytes), mask), _mm256_and_si256(_mm256_loadu_si256(bytes + 1), mask)};
            UNROLL for (int r = 0; r < R; ++r) words[t][r] = add_byte_products(words[t][r], low, in[r]);
            READ_NO_EARLIER();
            const Ints high = {_mm256_and_si256(_mm256_srli_epi16(_mm256_loadu_si256(bytes), 4), mask),
                               _mm256_and_si256(_mm256_srli_epi16(_mm256_loadu_si256(bytes + 1), 4), mask)};
            UNROLL for (int r = 0; r < R; ++r) words[t][r] = add_byte_products(words[t][r], high, in[4 * R + r]);
            READ_NO_EARLIER();
        }
    }
}

INLINE Ints add_pairs(Ints words, std::int16_t factor) {
    const __m256i factors = _mm256_set1_epi16(factor);
    return {_mm256_madd_epi16(words.low, factors), _mm256_madd_epi16(words.high, factors)};
}

// dot[t][r] = sum over 32 columns of (value of tile t, 0 .. 15) * (input r). Inputs are bytes; wide ones two planes of
// bytes, x = 256 high + low.
template <bool kWide, int T, int R> INLINE void dot_int4(Tiles<T, R> w, const std::int32_t* x, Ints (&dot)[T][R]) {
    Ints words[T][R];
    multiply_plane(w, x, words);
    UNROLL for (int t = 0; t < T; ++t) {
        UNROLL for (int r = 0; r < R; ++r) dot[t][r] = add_pairs(words[t][r], kWide ? 256 : 1);
    }
    if constexpr (kWide) {
        multiply_plane(w, x + 8 * R, words);
        UNROLL for (int t = 0; t < T; ++t) {
            UNROLL for (int r = 0; r < R; ++r) dot[t][r] = dot[t][r] + add_pairs(words[t][r], 1);
        }
    }
}

// Of sixteen pairs of bf16, the first or the second of each as floats.
INLINE Floats load_first_of_pairs(const void* p) {
    const auto* at = static_cast<const __m256i*>(p);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(at), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(at + 1), 16))};
}
INLINE Floats load_second_of_pairs(const void* p) {
    const auto* at = static_cast<const __m256i*>(p);
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(at), mask)),
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(at + 1), mask))};
}

#include "bf16_as_floats.hpp"

// What the processor does at most for such products (see peak.hpp).
constexpr double kInt8PeakProducts = 64, kBf16PeakProducts = 16;
INLINE Ints add_int8_peak(Ints a, Ints bytes, std::int32_t x) { return add_byte_products(a, bytes, x); }
INLINE Floats add_bf16_peak(Floats a, Floats b, Floats c) { return multiply_add(b, c, a); }
