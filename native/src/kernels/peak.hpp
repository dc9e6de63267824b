// The most multiply-adds that a core can do: sums that wait for nothing but themselves, as many as hide how long one takes.
// Included inside a namespace, with the instruction set switched on.

constexpr int kPeakSums = 12 * kRegisterBytes / 64; // of sixteen lanes: twelve registers

// add(sum) again and again on all sums; returns how often.
template <class Sum, class Add> INLINE long long repeat_sums(long long rounds, Sum start, Add add) {
    Sum sums[kPeakSums];
    UNROLL for (int i = 0; i < kPeakSums; ++i) {
        sums[i] = start;
        use_again(sums[i]); // not one sum, many times
    }
    for (long long round = 0; round < rounds; ++round) {
        UNROLL for (int i = 0; i < kPeakSums; ++i) sums[i] = add(sums[i]);
    }
    UNROLL for (int i = 0; i < kPeakSums; ++i) use_again(sums[i]); // else nothing need be computed at all
    return rounds * kPeakSums;
}

inline double multiply_adds(Elements elements, long long rounds) {
    Ints bytes = fill_ints(0x01010101);
    Floats x = fill(0.0f);
    // else a compiler may multiply once, and only add from then on
#define ANTHESIS_ADD(Sum, value, expression)                                                                            \
    [&](Sum a) __attribute__((always_inline)) {                                                                         \
        use_again(value);                                                                                               \
        return expression;                                                                                              \
    }
    switch (elements) {
    case Elements::int8:
        return kInt8PeakProducts * repeat_sums(rounds, fill_ints(0), ANTHESIS_ADD(Ints, bytes, add_int8_peak(a, bytes, 1)));
    case Elements::bf16:
        return kBf16PeakProducts * repeat_sums(rounds, x, ANTHESIS_ADD(Floats, x, add_bf16_peak(a, x, x)));
    default: return 16.0 * repeat_sums(rounds, x, ANTHESIS_ADD(Floats, x, multiply_add(x, x, a)));
    }
#undef ANTHESIS_ADD
}
