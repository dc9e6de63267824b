// Inputs of products with integers: whole numbers in groups of 32 with a scale of their own, and their sum. Included
// inside a namespace, with the instruction set switched on.

// Of a wide input's 127 * 256 steps the high byte is -127 .. 127 and the low one -128 .. 127.
constexpr float kWideSteps = 127 * 256, kNarrowSteps = 127;

// Quantises 32 inputs of one row into the record of its block; `arrange` writes the whole numbers as the products want
// them, kWords words of 32 bits.
template <int kWords, bool kWide, class Arrange>
INLINE void pack_group(const float* x, std::byte* record, int rows, int row, Arrange arrange) {
    const Floats a = load(x), b = load(x + 16);
    const float most = largest(larger(magnitude(a), magnitude(b)));
    constexpr float kSteps = kWide ? kWideSteps : kNarrowSteps;
    // a group of zeros, or of numbers so small that the inverse is no number, counts as zeros
    const bool usable = most > 1e-30f;
    const Floats inverse = fill(usable ? kSteps / most : 0.0f);
    const Ints first = to_ints(a * inverse), second = to_ints(b * inverse);
    // maximum and rounding lose a NaN, so it goes into the scale
    reinterpret_cast<float*>(record)[row] = (usable ? most / kSteps : 0.0f) + sum(a * zeros() + b * zeros());
    reinterpret_cast<std::int32_t*>(record)[rows + row] = sum(first + second);
    std::int32_t words[kWords];
    arrange(first, second, words);
    auto* data = reinterpret_cast<std::int32_t*>(record) + 2 * rows + row;
    for (int i = 0; i < kWords; ++i) data[i * rows] = words[i];
}

// The inputs of int4 matrices: bytes in order; wide ones as a plane of high and one of low bytes, x = 256 high + low.
template <bool kWide> INLINE void arrange_bytes(Ints first, Ints second, std::int32_t* out) {
    if constexpr (kWide) {
        const Ints half = fill_ints(128);
        const Ints high_first = arithmetic_shift(first + half, 8), high_second = arithmetic_shift(second + half, 8);
        store_bytes(out, high_first, high_second);
        store_bytes(out + 8, first - shift_left(high_first, 8), second - shift_left(high_second, 8));
    } else {
        store_bytes(out, first, second);
    }
}
