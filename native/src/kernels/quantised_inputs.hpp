// Inputs of products with integers: whole numbers in groups of 32 with a scale of their own. Included inside a namespace,
// with the instruction set switched on.
//
// A block of R rows holds for each group R scales, R numbers that follow from the group's sum, and the whole numbers.

// Of a wide input's 127 * 256 steps the high byte is -127 .. 127 and the low one -128 .. 127.
constexpr float kWideSteps = 127 * 256, kNarrowSteps = 127;

struct Quantised {
    Ints first, second; // sixteen each
    float scale;
};

template <bool kWide> INLINE Quantised quantise(const float* x) {
    const Floats a = load(x), b = load(x + 16);
    const float most = largest(larger(magnitude(a), magnitude(b)));
    constexpr float kSteps = kWide ? kWideSteps : kNarrowSteps;
    // a group of zeros, or of numbers so small that the inverse is no number, counts as zeros
    const bool usable = most > 1e-30f;
    const Floats inverse = fill(usable ? kSteps / most : 0.0f);
    // maximum and rounding lose a NaN, so it goes into the scale, and its number is one that sums can hold
    const auto whole = [&](Floats numbers) { return to_ints(larger(numbers * inverse, fill(-kSteps))); };
    const float scale = (usable ? most / kSteps : 0.0f) + sum(a * zeros() + b * zeros());
    return {whole(a), whole(b), scale};
}

// Writes the scale and the whole numbers of one row; `arrange` makes kWords words of the latter, as the products want
// them.
template <int kWords, class Arrange>
INLINE void pack_group(const Quantised& q, std::byte* record, int rows, int row, Arrange arrange) {
    reinterpret_cast<float*>(record)[row] = q.scale;
    std::int32_t words[kWords];
    arrange(q.first, q.second, words);
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
