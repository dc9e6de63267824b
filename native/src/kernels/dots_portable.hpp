// Integer products of 32 columns in plain C++. Included inside a namespace.

// Inputs of int8 matrices are words, of every four columns (0, 2) and (1, 3) together: the order in which masking and
// shifting a word of four bytes gives them.
template <bool kWide> constexpr std::size_t kInt8InputBytes = 64;

template <bool kWide> INLINE void arrange_int8_inputs(Ints first, Ints second, std::int32_t* out) {
    store_words_even_odd(out, first);
    store_words_even_odd(out + 8, second);
}

// Of every lane's four bytes one, as a number from 0 to 255.
INLINE Ints byte_of(Ints bytes, int which) { return arithmetic_shift(bytes, 8 * which) & 0xff; }

template <bool kWide, int T, int R>
INLINE void dot_int8(Tiles<T, R> w, const std::int32_t* x, const std::int32_t* offsets, Ints (&dot)[T][R]) {
    UNROLL for (int t = 0; t < T; ++t) {
        UNROLL for (int r = 0; r < R; ++r) dot[t][r] = fill_ints(offsets[r]);
    }
    for (int step = 0; step < 8; ++step, x += 2 * R)
        UNROLL for (int t = 0; t < T; ++t) {
            const Ints bytes = load_ints(w.at(t, step * 64));
            UNROLL for (int column = 0; column < 4; ++column) {
                const Ints values = byte_of(bytes, column);
                UNROLL for (int r = 0; r < R; ++r) {
                    std::int16_t in[2];
                    std::memcpy(in, x + column % 2 * R + r, sizeof(in));
                    dot[t][r] = dot[t][r] + values * fill_ints(in[column / 2]);
                }
            }
        }
}

template <bool kWide, int T, int R> INLINE void dot_int4(Tiles<T, R> w, const std::int32_t* x, Ints (&dot)[T][R]) {
    UNROLL for (int t = 0; t < T; ++t)
        UNROLL for (int r = 0; r < R; ++r) dot[t][r] = fill_ints(0);
    for (int step = 0; step < 8; ++step)
        UNROLL for (int t = 0; t < T; ++t) {
            const Ints bytes = arithmetic_shift(load_ints(w.at(t, step % 4 * 64)), step < 4 ? 0 : 4) & 0x0f0f0f0f;
            UNROLL for (int column = 0; column < 4; ++column) {
                const Ints values = byte_of(bytes, column);
                UNROLL for (int r = 0; r < R; ++r) {
                    std::int8_t in[2][4] = {};
                    std::memcpy(in[0], x + step * R + r, 4);
                    if (kWide) std::memcpy(in[1], x + (8 + step) * R + r, 4);
                    const int whole = kWide ? 256 * in[0][column] + in[1][column] : in[0][column];
                    dot[t][r] = dot[t][r] + values * fill_ints(whole);
                }
            }
        }
}

// Of sixteen pairs of bf16, the first or the second of each as floats.
INLINE Floats floats_of_bits(Ints a) { return std::bit_cast<Floats>(a); }
INLINE Floats load_first_of_pairs(const void* p) { return floats_of_bits(shift_left(load_ints(p), 16)); }
INLINE Floats load_second_of_pairs(const void* p) {
    return floats_of_bits(load_ints(p) & static_cast<std::int32_t>(0xffff0000));
}

#include "bf16_as_floats.hpp"
