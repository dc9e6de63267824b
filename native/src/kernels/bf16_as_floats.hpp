// Products with bf16 matrices where there is no instruction for them: bf16 numbers are the upper halves of floats.
// Included inside a namespace, after load_first_of_pairs(), load_second_of_pairs() and
// rounded_to_bf16().

constexpr std::size_t kBf16InputBytes = 32 * sizeof(float);

template <int T, int R>
INLINE void add_bf16_unit(Tiles<T, R> w, const std::byte* x, Floats (&sums)[T][R]) {
    const auto* in = reinterpret_cast<const float*>(x);
    for (int pair = 0; pair < 16; ++pair, in += 2 * R)
        UNROLL for (int t = 0; t < T; ++t) {
            const std::byte* at = w.at(t, pair * 64);
            w.fetch(at);
            const Floats first = load_first_of_pairs(at);
            UNROLL for (int r = 0; r < R; ++r) sums[t][r] = multiply_add(first, fill(in[r]), sums[t][r]);
            READ_NO_EARLIER();
            const Floats second = load_second_of_pairs(at);
            UNROLL for (int r = 0; r < R; ++r) sums[t][r] = multiply_add(second, fill(in[R + r]), sums[t][r]);
            READ_NO_EARLIER();
        }
}

INLINE void pack_bf16(const float* x, std::byte* record, int rows, int row) {
    float rounded[32];
    store(rounded, rounded_to_bf16(load(x)));
    store(rounded + 16, rounded_to_bf16(load(x + 16)));
    auto* out = reinterpret_cast<float*>(record) + row;
    for (int k = 0; k < 32; ++k) out[k * rows] = rounded[k];
}

// Two bf16 numbers that every lane's pair is multiplied with.
struct Bf16Pair {
    float first, second;
};

// Sixteen numbers as eight pairs; returns what they are after rounding.
INLINE Floats store_bf16_pairs(Bf16Pair* out, Floats a) {
    const Floats rounded = rounded_to_bf16(a);
    store(&out->first, rounded);
    return rounded;
}

// sums[n] += pairs * x[n * stride].
template <int N> INLINE void add_bf16_pairs(const std::byte* pairs, const Bf16Pair* x, std::size_t stride, Floats (&sums)[N]) {
    const Floats first = load_first_of_pairs(pairs);
    UNROLL for (int n = 0; n < N; ++n) sums[n] = multiply_add(first, fill(x[n * stride].first), sums[n]);
    READ_NO_EARLIER();
    const Floats second = load_second_of_pairs(pairs);
    UNROLL for (int n = 0; n < N; ++n) sums[n] = multiply_add(second, fill(x[n * stride].second), sums[n]);
    READ_NO_EARLIER();
}
