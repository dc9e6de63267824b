// Functions of sixteen lanes, and rows of any length. Included inside a namespace, with the instruction set switched on.

// The first `count` of sixteen, the others being `rest`.
INLINE Floats load_first(const float* p, int count, float rest = 0) {
    if (count >= 16) return load(p);
    float lanes[16];
    for (int i = 0; i < 16; ++i) lanes[i] = i < count ? p[i] : rest;
    return load(lanes);
}
INLINE void store_first(float* p, Floats a, int count) {
    if (count >= 16) return store(p, a);
    float lanes[16];
    store(lanes, a);
    for (int i = 0; i < count; ++i) p[i] = lanes[i];
}

// e^x to within 2e-7 of the result, by x = n ln 2 + r, |r| <= ln 2 / 2, and the series of e^r. Below -87, where the result
// would not be a normal number, it is 0; NaN stays NaN.
INLINE Floats exponential(Floats x) {
    const Floats bounded = smaller(fill(88.0f), larger(fill(-87.0f), x)); // a NaN in the second place stays
    const Floats n = round_to_whole(bounded * fill(1.44269504f));
    Floats r = multiply_add(n, fill(-0.693145752f), bounded); // ln 2 in two parts, the first with short fraction
    r = multiply_add(n, fill(-1.42860677e-6f), r);
    Floats p = fill(1.0f / 5040);
    p = multiply_add(p, r, fill(1.0f / 720));
    p = multiply_add(p, r, fill(1.0f / 120));
    p = multiply_add(p, r, fill(1.0f / 24));
    p = multiply_add(p, r, fill(1.0f / 6));
    p = multiply_add(p, r, fill(0.5f));
    p = multiply_add(p, r, fill(1.0f));
    p = multiply_add(p, r, fill(1.0f));
    // by its bits a NaN may be negative, which is not below -87: smaller() gives the 1
    return where_negative(smaller(x + fill(87.0f), fill(1.0f)), zeros(), times_power_of_two(p, n));
}

// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: within 1.5e-7 of erf.
INLINE Floats error_function(Floats x) {
    const Floats a = magnitude(x), t = fill(1.0f) / multiply_add(a, fill(0.3275911f), fill(1.0f));
    Floats p = fill(1.061405429f);
    p = multiply_add(p, t, fill(-1.453152027f));
    p = multiply_add(p, t, fill(1.421413741f));
    p = multiply_add(p, t, fill(-0.284496736f));
    p = multiply_add(p, t, fill(0.254829592f));
    const Floats positive = fill(1.0f) - p * t * exponential(zeros() - a * a);
    return where_negative(x, zeros() - positive, positive);
}

// Those of program/ops.py.
INLINE Floats activate(Activation activation, Floats x) {
    const Floats one = fill(1.0f), half = fill(0.5f);
    switch (activation) {
    case Activation::none: return x;
    case Activation::relu: return larger(zeros(), x);
    case Activation::silu: return x / (one + exponential(zeros() - x));
    case Activation::gelu: return half * x * (one + error_function(x * fill(0.707106781f)));
    case Activation::gelu_tanh: {
        // tanh is exactly 1 long before 20, and the cube of a large x overflows
        const Floats near = smaller(fill(20.0f), larger(fill(-20.0f), x));
        const Floats inner = fill(0.797884561f) * multiply_add(near * near * near, fill(0.044715f), near);
        // 1 + tanh(y) = 2 / (1 + e^(-2y)) loses nothing where tanh is near -1
        return x / (one + exponential(fill(-2.0f) * inner));
    }
    }
    return x;
}

inline void activate(Activation activation, const float* x, float* out, int count) {
    for (int i = 0; i < count; i += 16) store_first(out + i, activate(activation, load_first(x + i, count - i)), count - i);
}

inline void norm(const NormSpec& spec, const float* x, float* out, int width) {
    float mean = 0;
    if (spec.centered) {
        Floats total = zeros();
        for (int i = 0; i < width; i += 16) total = total + load_first(x + i, width - i);
        mean = sum(total) / static_cast<float>(width);
    }
    Floats squares = zeros();
    for (int i = 0; i < width; i += 16) {
        const Floats a = load_first(x + i, width - i, mean) - fill(mean);
        squares = multiply_add(a, a, squares);
    }
    const Floats scale = fill(1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + spec.epsilon));
    for (int i = 0; i < width; i += 16) {
        Floats a = (load_first(x + i, width - i) - fill(mean)) * scale * load_first(spec.weight + i, width - i);
        if (spec.bias) a = a + load_first(spec.bias + i, width - i);
        store_first(out + i, a, width - i);
    }
}

inline void rotate(const float* x, const float* angles, float* out, int head_dim) {
    const int half = head_dim / 2;
    for (int i = 0; i < half; i += 16) {
        const int count = half - i;
        const Floats first = load_first(x + i, count), second = load_first(x + half + i, count);
        const Floats cosine = load_first(angles + i, count), sine = load_first(angles + half + i, count);
        store_first(out + i, first * cosine - second * sine, count);
        store_first(out + half + i, second * cosine + first * sine, count);
    }
}

// The largest of `count` > 0 numbers, without looking at NaN; `unordered` becomes NaN where one is NaN or infinite.
INLINE float largest_of(const float* x, int count, Floats& unordered) {
    Floats most = fill(-std::numeric_limits<float>::infinity());
    for (int i = 0; i < count; i += 16) {
        const Floats a = load_first(x + i, count - i, x[0]);
        most = larger(most, a);
        unordered = multiply_add(a, zeros(), unordered);
    }
    return largest(most);
}

inline float maximum(const float* x, int count) {
    Floats unordered = zeros();
    const float most = largest_of(x, count, unordered);
    return most + sum(unordered);
}

inline int argmax(const float* x, int count) {
    // Maxima of blocks first, then the place in the best: the first pass is as fast as the data come in.
    constexpr int kBlock = 1024;
    Floats unordered = zeros();
    float best = -std::numeric_limits<float>::infinity();
    int best_block = 0;
    for (int block = 0; block < count; block += kBlock) {
        if (const float found = largest_of(x + block, std::min(kBlock, count - block), unordered); found > best) {
            best = found;
            best_block = block;
        }
    }
    const bool finite = sum(unordered) == 0;
    for (int i = finite ? best_block : 0; i < count; ++i)
        if (finite ? x[i] == best : std::isnan(x[i])) return i;
    for (int i = 0; i < count; ++i) // infinite, but no NaN
        if (x[i] == best) return i;
    return 0;
}
