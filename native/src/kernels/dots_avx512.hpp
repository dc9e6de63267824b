// Products of 32 columns on AVX-512 with VNNI and BF16. Included inside a namespace, with the instruction set switched on.

// Inputs of int8 matrices are bytes, those of int4 matrices are in the same order.
template <bool kWide> constexpr std::size_t kInt8InputBytes = kWide ? 64 : 32;

template <bool kWide> INLINE void arrange_int8_inputs(Ints first, Ints second, std::int32_t* out) {
    arrange_bytes<kWide>(first, second, out);
}

// Adds the products of unsigned bytes (four of each lane) with four signed ones, the same for every lane.
INLINE Ints add_products(Ints a, __m512i bytes, std::int32_t x) {
    return {_mm512_dpbusd_epi32(a.all, bytes, _mm512_set1_epi32(x))};
}

// dot[t][r] += sum over 32 columns of (stored byte of tile t) * (input r), of one plane of the inputs' bytes.
template <bool kFetches, int T, int R>
INLINE void add_plane_products(Tiles<T, R> w, const std::int32_t* plane, Ints (&dot)[T][R]) {
    for (int step = 0; step < 8; ++step)
        UNROLL for (int t = 0; t < T; ++t) {
            const std::byte* at = w.at(t, step * 64);
            if constexpr (kFetches) w.fetch(at);
            const __m512i bytes = _mm512_loadu_si512(at);
            UNROLL for (int r = 0; r < R; ++r) dot[t][r] = add_products(dot[t][r], bytes, plane[step * R + r]);
        }
}

// The same of four-bit values.
template <bool kFetches, int T, int R>
INLINE void add_int4_plane_products(Tiles<T, R> w, const std::int32_t* plane, Ints (&dot)[T][R]) {
    const __m512i mask = _mm512_set1_epi8(15);
    for (int step = 0; step < 4; ++step)
        UNROLL for (int t = 0; t < T; ++t) {
            const std::byte* at = w.at(t, step * 64);
            if constexpr (kFetches) w.fetch(at);
            const __m512i bytes = _mm512_loadu_si512(at);
            const __m512i first = _mm512_and_si512(bytes, mask), last = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask);
            UNROLL for (int r = 0; r < R; ++r)
                dot[t][r] = add_products(add_products(dot[t][r], first, plane[step * R + r]), last, plane[(step + 4) * R + r]);
        }
}

template <int T, int R> INLINE void shift_all(Ints (&dot)[T][R]) {
    UNROLL for (int t = 0; t < T; ++t) {
        UNROLL for (int r = 0; r < R; ++r) dot[t][r] = shift_left(dot[t][r], 8);
    }
}
template <int T, int R> INLINE void clear_all(Ints (&dot)[T][R]) {
    UNROLL for (int t = 0; t < T; ++t) {
        UNROLL for (int r = 0; r < R; ++r) dot[t][r] = fill_ints(0);
    }
}

// dot[t][r] = offsets[r] + sum over 32 columns of (stored byte of tile t) * (input r). Wide inputs are two planes of bytes, x =
// 256 high + low, one after the other: sums of both would not all have registers.
template <bool kWide, int T, int R>
INLINE void dot_int8(Tiles<T, R> w, const std::int32_t* x, const std::int32_t* offsets, Ints (&dot)[T][R]) {
    if constexpr (kWide) {
        clear_all(dot);
        add_plane_products<true>(w, x, dot);
        shift_all(dot);
        UNROLL for (int t = 0; t < T; ++t) {
            UNROLL for (int r = 0; r < R; ++r) dot[t][r] = dot[t][r] + fill_ints(offsets[r]);
        }
        add_plane_products<false>(w, x + 8 * R, dot);
    } else {
        UNROLL for (int t = 0; t < T; ++t) {
            UNROLL for (int r = 0; r < R; ++r) dot[t][r] = fill_ints(offsets[r]);
        }
        add_plane_products<true>(w, x, dot);
    }
}

// dot[t][r] = sum over 32 columns of (value of tile t, 0 .. 15) * (input r).
template <bool kWide, int T, int R> INLINE void dot_int4(Tiles<T, R> w, const std::int32_t* x, Ints (&dot)[T][R]) {
    clear_all(dot);
    add_int4_plane_products<true>(w, x, dot);
    if constexpr (kWide) {
        shift_all(dot);
        add_int4_plane_products<false>(w, x + 8 * R, dot);
    }
}

constexpr std::size_t kBf16InputBytes = 32 * 2;

template <int T, int R>
INLINE void add_bf16_unit(Tiles<T, R> w, const std::byte* x, Floats (&sums)[T][R]) {
    const auto* in = reinterpret_cast<const std::int32_t*>(x);
    for (int pair = 0; pair < 16; ++pair, in += R)
        UNROLL for (int t = 0; t < T; ++t) {
            const std::byte* at = w.at(t, pair * 64);
            w.fetch(at);
            const __m512bh values = (__m512bh)_mm512_loadu_si512(at);
            UNROLL for (int r = 0; r < R; ++r) sums[t][r] = _mm512_dpbf16_ps(sums[t][r], values, (__m512bh)_mm512_set1_epi32(in[r]));
        }
}

INLINE void pack_bf16(const float* x, std::byte* record, int rows, int row) {
    std::int32_t pairs[16];
    store_bf16(pairs, load(x));
    store_bf16(pairs + 8, load(x + 16));
    auto* out = reinterpret_cast<std::int32_t*>(record) + row;
    UNROLL for (int i = 0; i < 16; ++i) out[i * rows] = pairs[i];
}

// Two bf16 numbers that every lane's pair is multiplied with.
using Bf16Pair = std::int32_t;

// Sixteen numbers as eight pairs; returns what they are after rounding. Subnormal ones become zero, as in the products.
INLINE Floats store_bf16_pairs(Bf16Pair* out, Floats a) {
    const __m256i words = (__m256i)_mm512_cvtneps_pbh(a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), words);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}

// sums[n] += pairs * x[n * stride].
template <int N> INLINE void add_bf16_pairs(const std::byte* pairs, const Bf16Pair* x, std::size_t stride, Floats (&sums)[N]) {
    const __m512bh numbers = (__m512bh)_mm512_loadu_si512(pairs);
    UNROLL for (int n = 0; n < N; ++n) sums[n] = _mm512_dpbf16_ps(sums[n], numbers, (__m512bh)_mm512_set1_epi32(x[n * stride]));
}

// What the processor does at most for such products (see peak.hpp).
constexpr double kInt8PeakProducts = 64, kBf16PeakProducts = 32;
INLINE Ints add_int8_peak(Ints a, Ints bytes, std::int32_t x) { return add_products(a, bytes.all, x); }
INLINE Floats add_bf16_peak(Floats a, Floats b, Floats c) { return _mm512_dpbf16_ps(a, (__m512bh)b, (__m512bh)c); }
