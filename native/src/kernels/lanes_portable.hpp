// Sixteen lanes in plain C++, for any processor; four at a time, in what vectors there are. Included inside a
// namespace.

using FourFloats = float __attribute__((vector_size(16))); // of GCC and Clang: what the processor has, or plain numbers
using FourInts = std::int32_t __attribute__((vector_size(16)));

struct Floats {
    FourFloats four[4];
};

struct Ints {
    FourInts four[4];
};

// One result from each four lanes of the arguments.
template <class Result, class F> INLINE Result each_four(F f) {
    Result result;
    UNROLL for (int i = 0; i < 4; ++i) result.four[i] = f(i);
    return result;
}
// One lane after the other.
template <class F> INLINE Floats each_float(F f) {
    return each_four<Floats>([&](int i) { return FourFloats{f(4 * i), f(4 * i + 1), f(4 * i + 2), f(4 * i + 3)}; });
}
template <class F> INLINE Ints each_int(F f) {
    return each_four<Ints>([&](int i) { return FourInts{f(4 * i), f(4 * i + 1), f(4 * i + 2), f(4 * i + 3)}; });
}
INLINE float lane(const Floats& a, int i) { return a.four[i / 4][i % 4]; }
INLINE std::int32_t lane(const Ints& a, int i) { return a.four[i / 4][i % 4]; }

INLINE Floats fill(float x) {
    return each_four<Floats>([=](int) { return FourFloats{x, x, x, x}; });
}
INLINE Floats zeros() { return fill(0.0f); }
INLINE Floats load(const float* p) {
    Floats a;
    std::memcpy(a.four, p, sizeof(a.four));
    return a;
}
INLINE void store(float* p, Floats a) { std::memcpy(p, a.four, sizeof(a.four)); }
INLINE Floats operator+(Floats a, Floats b) {
    return each_four<Floats>([&](int i) { return a.four[i] + b.four[i]; });
}
INLINE Floats operator-(Floats a, Floats b) {
    return each_four<Floats>([&](int i) { return a.four[i] - b.four[i]; });
}
INLINE Floats operator*(Floats a, Floats b) {
    return each_four<Floats>([&](int i) { return a.four[i] * b.four[i]; });
}
INLINE Floats operator/(Floats a, Floats b) {
    return each_four<Floats>([&](int i) { return a.four[i] / b.four[i]; });
}
// Rounded twice: one rounding would be a call of a library function where the processor has no such instruction.
INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
// The second where one is NaN.
INLINE Floats larger(Floats a, Floats b) {
    return each_four<Floats>([&](int i) { return a.four[i] > b.four[i] ? a.four[i] : b.four[i]; });
}
INLINE Floats smaller(Floats a, Floats b) {
    return each_four<Floats>([&](int i) { return a.four[i] < b.four[i] ? a.four[i] : b.four[i]; });
}
INLINE Floats magnitude(Floats a) {
    return each_four<Floats>([&](int i) { return reinterpret_cast<FourFloats>(reinterpret_cast<FourInts>(a.four[i]) & 0x7fffffff); });
}
INLINE Floats where_negative(Floats x, Floats a, Floats b) {
    return each_four<Floats>([&](int i) { return reinterpret_cast<FourInts>(x.four[i]) < 0 ? a.four[i] : b.four[i]; });
}
// Adding and taking away 1.5 * 2^23 rounds to whole numbers, for magnitudes below 2^22.
INLINE Floats round_to_whole(Floats a) { return a + fill(12582912.0f) - fill(12582912.0f); }
INLINE Ints to_ints(Floats a) {
    // what is not a number has no whole number; any will do
    const auto whole = [](float x) { return x >= -1e9f && x <= 1e9f ? static_cast<std::int32_t>(std::nearbyintf(x)) : 0; };
    return each_int([&](int i) { return whole(lane(a, i)); });
}
INLINE Floats to_floats(Ints a) {
    return each_four<Floats>([&](int i) { return __builtin_convertvector(a.four[i], FourFloats); });
}
INLINE Floats times_power_of_two(Floats x, Floats n) {
    return each_float([&](int i) {
        const float wanted = lane(n, i);
        const auto power = wanted >= -126 && wanted <= 127 ? static_cast<std::int32_t>(wanted) : 0; // 0 for a NaN
        return lane(x, i) * std::bit_cast<float>((power + 127) << 23);
    });
}
INLINE float sum(Floats a) {
    float lanes[16];
    store(lanes, a);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}
INLINE float largest(Floats a) {
    float lanes[16];
    store(lanes, a);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    return lanes[0];
}
INLINE Floats lane_numbers() {
    return each_float([](int i) { return static_cast<float>(i); });
}

INLINE std::uint16_t load_word(const void* p, int i) {
    std::uint16_t word;
    std::memcpy(&word, static_cast<const std::byte*>(p) + 2 * i, sizeof(word));
    return word;
}
INLINE Floats load_halves(const void* p) {
    return each_float([&](int i) { return half_to_float(load_word(p, i)); });
}
INLINE std::uint16_t bf16_bits(float x) {
    const auto word = std::bit_cast<std::uint32_t>(x);
    if (x != x) return static_cast<std::uint16_t>((word | 0x400000) >> 16);
    return static_cast<std::uint16_t>((word + ((word >> 16) & 1) + 0x7fff) >> 16);
}
INLINE Floats rounded_to_bf16(Floats a) {
    return each_float([&](int i) { return std::bit_cast<float>(std::uint32_t{bf16_bits(lane(a, i))} << 16); });
}
INLINE void store_bf16(void* p, Floats a) {
    for (int i = 0; i < 16; ++i) {
        const std::uint16_t word = bf16_bits(lane(a, i));
        std::memcpy(static_cast<std::byte*>(p) + 2 * i, &word, sizeof(word));
    }
}

INLINE Ints fill_ints(std::int32_t x) {
    return each_four<Ints>([=](int) { return FourInts{x, x, x, x}; });
}
INLINE Ints operator+(Ints a, Ints b) {
    return each_four<Ints>([&](int i) { return a.four[i] + b.four[i]; });
}
INLINE Ints operator-(Ints a, Ints b) {
    return each_four<Ints>([&](int i) { return a.four[i] - b.four[i]; });
}
INLINE Ints operator*(Ints a, Ints b) {
    return each_four<Ints>([&](int i) { return a.four[i] * b.four[i]; });
}
INLINE Ints operator&(Ints a, std::int32_t mask) {
    return each_four<Ints>([&](int i) { return a.four[i] & mask; });
}
INLINE Ints arithmetic_shift(Ints a, int bits) {
    return each_four<Ints>([&](int i) { return a.four[i] >> bits; });
}
INLINE Ints shift_left(Ints a, int bits) {
    return each_four<Ints>([&](int i) { return a.four[i] << bits; });
}
INLINE Ints load_ints(const void* p) {
    Ints a;
    std::memcpy(a.four, p, sizeof(a.four));
    return a;
}
INLINE std::int32_t sum(Ints a) {
    std::int32_t total = 0;
    for (int i = 0; i < 16; ++i) total += lane(a, i);
    return total;
}
INLINE void store_bytes(void* p, Ints a, Ints b) {
    auto* bytes = static_cast<std::int8_t*>(p);
    for (int i = 0; i < 16; ++i) bytes[i] = static_cast<std::int8_t>(lane(a, i));
    for (int i = 0; i < 16; ++i) bytes[16 + i] = static_cast<std::int8_t>(lane(b, i));
}
INLINE void store_words_even_odd(void* p, Ints a) {
    std::int16_t words[16];
    for (int i = 0; i < 16; i += 4) {
        words[i] = static_cast<std::int16_t>(lane(a, i));
        words[i + 1] = static_cast<std::int16_t>(lane(a, i + 2));
        words[i + 2] = static_cast<std::int16_t>(lane(a, i + 1));
        words[i + 3] = static_cast<std::int16_t>(lane(a, i + 3));
    }
    std::memcpy(p, words, sizeof(words));
}
INLINE void fetch_ahead(const void* p) { __builtin_prefetch(p); }
