// The block cache as attention reads it, and a thread's memory beside it. Included inside a namespace, with the instruction set
// switched on.

constexpr int kBlockGroups = kBlockTokens / 16;

// What a lane of the cache holds, and the inputs it is multiplied with. Of bf16, queries and weights are rounded to bf16 too.
template <bool kBf16> struct Lanes;

template <> struct Lanes<false> {
    using Input = float;
    static constexpr int numbers = 1;
    static INLINE Floats store_inputs(Input* out, Floats a) {
        store(out, a);
        return a;
    }
    template <int N> static INLINE void add(const std::byte* lanes, const Input* x, std::size_t stride, Floats (&sums)[N]) {
        const Floats a = load(reinterpret_cast<const float*>(lanes));
        UNROLL for (int n = 0; n < N; ++n) sums[n] = multiply_add(fill(x[n * stride]), a, sums[n]);
    }
};

template <> struct Lanes<true> {
    using Input = Bf16Pair;
    static constexpr int numbers = 2;
    static INLINE Floats store_inputs(Input* out, Floats a) { return store_bf16_pairs(out, a); }
    template <int N> static INLINE void add(const std::byte* lanes, const Input* x, std::size_t stride, Floats (&sums)[N]) {
        add_bf16_pairs(lanes, x, stride, sums);
    }
};

// Inputs of a query stand as far from those of the next as so many floats would.
template <bool kBf16> constexpr std::size_t inputs_in(int floats) { return floats * sizeof(float) / sizeof(typename Lanes<kBf16>::Input); }

// Sixteen lanes with some bits only, of the first `count`.
struct SomeLanes {
    alignas(64) std::uint32_t bits[16] = {};
    INLINE SomeLanes(const std::byte* lanes, int count, std::uint32_t mask) {
        std::memcpy(bits, lanes, 4 * count);
        for (std::uint32_t& lane : bits) lane &= mask;
    }
    INLINE const std::byte* lanes() const { return reinterpret_cast<const std::byte*>(bits); }
};

INLINE std::byte* cache_block(const AttendRows& job, int block) {
    return job.layer->cache + static_cast<std::size_t>(job.table[block]) * job.layer->layout.block_bytes();
}

// What a query sees of some keys is a record: the largest score, the sum of exponentials, and from kSumsAt on the
// weighted sum of the values. Nothing seen: the sum of exponentials is 0.
constexpr int kSumsAt = 16;

constexpr int whole_groups(int head_dim) { return (head_dim + 15) / 16 * 16; }
constexpr int record_floats(int head_dim) { return kSumsAt + whole_groups(head_dim); }

// A thread's memory while it attends; and how much that is.
struct AttendScratch {
    float* rotated;  // (D): a key or a query
    float* queries;  // (heads or kBlockQueries, D): inputs, times the scale
    float* scores;   // (kBlockQueries, 64)
    float* weights;  // (kBlockQueries, 64): inputs
    float* added;    // (kBlockQueries) records
    float* seen;     // (heads or kBlockQueries) records
    std::size_t floats = 0;

    AttendScratch(const AttendLayer& layer, float* memory) {
        const int width = whole_groups(layer.layout.head_dim), record = record_floats(layer.layout.head_dim);
        const int count = std::max(kBlockQueries, layer.heads);
        const auto take = [&](int rows, int row_floats) {
            float* taken = memory ? memory + floats : nullptr;
            floats += static_cast<std::size_t>(rows) * row_floats;
            return taken;
        };
        rotated = take(1, width);
        queries = take(count, width);
        scores = take(kBlockQueries, kBlockTokens);
        weights = take(kBlockQueries, kBlockTokens);
        added = take(kBlockQueries, record);
        seen = take(count, record);
    }
};

// Stores what a row adds to one key-value head.
inline void store_row(const AttendRows& job, int row, int kv_head) {
    const AttendLayer& layer = *job.layer;
    const CacheLayout& layout = layer.layout;
    const int D = layout.head_dim, position = job.positions[row], token = position % kBlockTokens;
    std::byte* block = cache_block(job, position / kBlockTokens);
    const float* key = job.k + row * job.kv_stride + kv_head * D;
    const float* value = job.v + row * job.kv_stride + kv_head * D;
    if (layer.rotates) {
        float* rotated = AttendScratch(layer, job.scratch).rotated;
        rotate(key, job.angles + static_cast<std::size_t>(row) * D, rotated, D);
        key = rotated;
    }
    std::byte* keys = block + layout.keys_at(kv_head);
    std::byte* values = block + layout.values_at(kv_head);
    const std::size_t lane = layout.is_bf16 ? token / 2 : token; // of a value
    for (int i = 0; i < D; i += 16) {
        const int count = D - i < 16 ? D - i : 16;
        const Floats k = load_first(key + i, count), v = load_first(value + i, count);
        if (layout.is_bf16) {
            std::uint16_t words[16];
            store_bf16(words, k);
            for (int j = 0; j < count; j += 2)
                std::memcpy(keys + 4 * ((i + j) / 2 * kBlockTokens + token), words + j, 4);
            store_bf16(words, v);
            for (int j = 0; j < count; ++j) std::memcpy(values + 4 * (lane * D + i + j) + 2 * (token % 2), words + j, 2);
        } else {
            float numbers[16];
            store(numbers, k);
            for (int j = 0; j < count; ++j) std::memcpy(keys + 4 * ((i + j) * kBlockTokens + token), numbers + j, 4);
            store_first(reinterpret_cast<float*>(values) + lane * D + i, v, count);
        }
    }
}

inline void attend_store(const AttendRows& job) {
    for (int row = job.first_row; row < job.first_row + job.rows; ++row) store_row(job, row, job.kv_head);
}

// Fetches the keys and values of a head in a block that is not full: with holes between, the processor does not foresee them.
INLINE void fetch_head(const CacheLayout& layout, const std::byte* block, int kv_head, int tokens) {
    const std::byte *keys = block + layout.keys_at(kv_head), *values = block + layout.values_at(kv_head);
    for (int lane = 0; lane < layout.key_lanes(); ++lane)
        for (int i = 0; i < tokens; i += 16) __builtin_prefetch(keys + 4 * (lane * kBlockTokens + i), 0, 2);
    const int value_lanes = (tokens + layout.numbers_per_lane() - 1) / layout.numbers_per_lane() * layout.head_dim;
    for (int i = 0; i < value_lanes; i += 16) __builtin_prefetch(values + 4 * i, 0, 2);
}

// A few queries read keys and values as fast as memory brings them: what follows is asked for into the second-level cache. The
// first-level cache, or farther, is up to half slower.
constexpr std::size_t kCacheAhead = 3072;
template <int kQueries> INLINE void fetch_cache(const std::byte* read) {
    if constexpr (kQueries <= kFewRows) __builtin_prefetch(read + kCacheAhead, 0, 2);
}
