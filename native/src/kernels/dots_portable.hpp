// Integer products of 32 columns in plain C++. Included inside a namespace.

// Inputs of int8 matrices are words, of every four columns (0, 2) and (1, 3) together: the order in which masking and
// shifting a word of four bytes gives them.
template <bool kWide> constexpr std::size_t kInt8InputBytes = 64;

template <bool kWide> INLINE void arrange_int8_inputs(Ints first, Ints second, std::int32_t* out) {
    store_words_even_odd(out, first);
    store_words_even_odd(out + 8, second);
}

template <bool kWide, int T, int R>
INLINE void add_int8_products(Tiles<T, R == 1> w, const std::int32_t* x, Ints (&dot)[T][R]) {
    for (int step = 0; step < 8; ++step, x += 2 * R)
        for (int t = 0; t < T; ++t) {
            const auto* bytes = reinterpret_cast<const std::uint8_t*>(w.at(t, step * 64));
            for (int r = 0; r < R; ++r) {
                std::int16_t even[2], odd[2];
                std::memcpy(even, x + r, sizeof(even));
                std::memcpy(odd, x + R + r, sizeof(odd));
                for (int lane = 0; lane < 16; ++lane)
                    dot[t][r].lane[lane] += bytes[4 * lane] * even[0] + bytes[4 * lane + 2] * even[1] +
                                            bytes[4 * lane + 1] * odd[0] + bytes[4 * lane + 3] * odd[1];
            }
        }
}

template <bool kWide, int T, int R> INLINE void dot_int4(Tiles<T, R == 1> w, const std::int32_t* x, Ints (&dot)[T][R]) {
    for (int t = 0; t < T; ++t)
        for (int r = 0; r < R; ++r) dot[t][r] = fill_ints(0);
    for (int plane = 0; plane < (kWide ? 2 : 1); ++plane) {
        const int factor = kWide && plane == 0 ? 256 : 1;
        for (int step = 0; step < 8; ++step)
            for (int t = 0; t < T; ++t) {
                const auto* bytes = reinterpret_cast<const std::uint8_t*>(w.at(t, step % 4 * 64));
                const int shift = step < 4 ? 0 : 4;
                for (int r = 0; r < R; ++r) {
                    std::int8_t in[4];
                    std::memcpy(in, x + (plane * 8 + step) * R + r, sizeof(in));
                    for (int lane = 0; lane < 16; ++lane) {
                        int total = 0;
                        for (int j = 0; j < 4; ++j) total += (bytes[4 * lane + j] >> shift & 15) * in[j];
                        dot[t][r].lane[lane] += factor * total;
                    }
                }
            }
    }
}

INLINE std::uint32_t load_pair(const void* p, int i) {
    std::uint32_t pair;
    std::memcpy(&pair, static_cast<const std::byte*>(p) + 4 * i, sizeof(pair));
    return pair;
}
INLINE Floats load_first_of_pairs(const void* p) {
    return each_float([&](int i) { return std::bit_cast<float>(load_pair(p, i) << 16); });
}
INLINE Floats load_second_of_pairs(const void* p) {
    return each_float([&](int i) { return std::bit_cast<float>(load_pair(p, i) & 0xffff0000u); });
}

#include "bf16_as_floats.hpp"
