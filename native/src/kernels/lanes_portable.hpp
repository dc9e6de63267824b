// Sixteen lanes in plain C++, for any processor; compilers turn the loops into what vectors there are. Included inside a
// namespace.

struct Floats {
    float lane[16];
};

struct Ints {
    std::int32_t lane[16];
};

template <class F> INLINE Floats each_float(F f) {
    Floats result;
    for (int i = 0; i < 16; ++i) result.lane[i] = f(i);
    return result;
}
template <class F> INLINE Ints each_int(F f) {
    Ints result;
    for (int i = 0; i < 16; ++i) result.lane[i] = f(i);
    return result;
}

INLINE Floats fill(float x) {
    return each_float([=](int) { return x; });
}
INLINE Floats zeros() { return fill(0.0f); }
INLINE Floats load(const float* p) {
    Floats a;
    std::memcpy(a.lane, p, sizeof(a.lane));
    return a;
}
INLINE void store(float* p, Floats a) { std::memcpy(p, a.lane, sizeof(a.lane)); }
INLINE Floats operator+(Floats a, Floats b) {
    return each_float([&](int i) { return a.lane[i] + b.lane[i]; });
}
INLINE Floats operator-(Floats a, Floats b) {
    return each_float([&](int i) { return a.lane[i] - b.lane[i]; });
}
INLINE Floats operator*(Floats a, Floats b) {
    return each_float([&](int i) { return a.lane[i] * b.lane[i]; });
}
INLINE Floats operator/(Floats a, Floats b) {
    return each_float([&](int i) { return a.lane[i] / b.lane[i]; });
}
// Rounded twice: one rounding would be a call of a library function where the processor has no such instruction.
INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
    return each_float([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
// The second where one is NaN.
INLINE Floats larger(Floats a, Floats b) {
    return each_float([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
INLINE Floats smaller(Floats a, Floats b) {
    return each_float([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
INLINE Floats magnitude(Floats a) {
    return each_float([&](int i) { return std::fabs(a.lane[i]); });
}
INLINE Floats where_negative(Floats x, Floats a, Floats b) {
    return each_float([&](int i) { return std::signbit(x.lane[i]) ? a.lane[i] : b.lane[i]; });
}
// Adding and taking away 1.5 * 2^23 rounds to whole numbers, for magnitudes below 2^22.
INLINE Floats round_to_whole(Floats a) {
    return each_float([&](int i) { return (a.lane[i] + 12582912.0f) - 12582912.0f; });
}
INLINE Ints to_ints(Floats a) {
    // what is not a number has no whole number; any will do
    const auto whole = [](float x) { return x >= -1e9f && x <= 1e9f ? static_cast<std::int32_t>(std::nearbyintf(x)) : 0; };
    return each_int([&](int i) { return whole(a.lane[i]); });
}
INLINE Floats to_floats(Ints a) {
    return each_float([&](int i) { return static_cast<float>(a.lane[i]); });
}
INLINE Floats times_power_of_two(Floats x, Floats n) {
    return each_float([&](int i) {
        const auto power = n.lane[i] >= -126 && n.lane[i] <= 127 ? static_cast<std::int32_t>(n.lane[i]) : 0; // 0 for a NaN
        return x.lane[i] * std::bit_cast<float>((power + 127) << 23);
    });
}
INLINE float sum(Floats a) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) a.lane[i] += a.lane[i + half];
    return a.lane[0];
}
INLINE float largest(Floats a) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) a.lane[i] = a.lane[i] > a.lane[i + half] ? a.lane[i] : a.lane[i + half];
    return a.lane[0];
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
INLINE Floats load_bf16(const void* p) {
    return each_float([&](int i) { return std::bit_cast<float>(std::uint32_t{load_word(p, i)} << 16); });
}
INLINE std::uint16_t bf16_bits(float x) {
    const auto word = std::bit_cast<std::uint32_t>(x);
    if (x != x) return static_cast<std::uint16_t>((word | 0x400000) >> 16);
    return static_cast<std::uint16_t>((word + ((word >> 16) & 1) + 0x7fff) >> 16);
}
INLINE Floats rounded_to_bf16(Floats a) {
    return each_float([&](int i) { return std::bit_cast<float>(std::uint32_t{bf16_bits(a.lane[i])} << 16); });
}
INLINE void store_bf16(void* p, Floats a) {
    for (int i = 0; i < 16; ++i) {
        const std::uint16_t word = bf16_bits(a.lane[i]);
        std::memcpy(static_cast<std::byte*>(p) + 2 * i, &word, sizeof(word));
    }
}

INLINE Ints fill_ints(std::int32_t x) {
    return each_int([=](int) { return x; });
}
INLINE Ints operator+(Ints a, Ints b) {
    return each_int([&](int i) { return a.lane[i] + b.lane[i]; });
}
INLINE Ints operator-(Ints a, Ints b) {
    return each_int([&](int i) { return a.lane[i] - b.lane[i]; });
}
INLINE Ints arithmetic_shift(Ints a, int bits) {
    return each_int([&](int i) { return a.lane[i] >> bits; });
}
INLINE Ints shift_left(Ints a, int bits) {
    return each_int([&](int i) { return a.lane[i] * (1 << bits); });
}
INLINE std::int32_t sum(Ints a) {
    std::int32_t total = 0;
    for (const std::int32_t x : a.lane) total += x;
    return total;
}
INLINE void store_bytes(void* p, Ints a, Ints b) {
    auto* bytes = static_cast<std::int8_t*>(p);
    for (int i = 0; i < 16; ++i) bytes[i] = static_cast<std::int8_t>(a.lane[i]);
    for (int i = 0; i < 16; ++i) bytes[16 + i] = static_cast<std::int8_t>(b.lane[i]);
}
INLINE void store_words_even_odd(void* p, Ints a) {
    std::int16_t words[16];
    for (int i = 0; i < 16; i += 4) {
        words[i] = static_cast<std::int16_t>(a.lane[i]);
        words[i + 1] = static_cast<std::int16_t>(a.lane[i + 2]);
        words[i + 2] = static_cast<std::int16_t>(a.lane[i + 1]);
        words[i + 3] = static_cast<std::int16_t>(a.lane[i + 3]);
    }
    std::memcpy(p, words, sizeof(words));
}
INLINE void fetch_ahead(const void* p) { __builtin_prefetch(p); }
