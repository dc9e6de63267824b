// Attention over the block cache. Included inside a namespace, with the instruction set switched on.
//
// One arithmetic for every row, whatever runs beside it: of each block of 64 keys the maximum, the sum of exponentials
// and the weighted sum of values, blocks combined from left to right. A kernel works on several queries of the same
// sequence and key-value head at once: rows of a prompt, or the query heads that share a key-value head.

constexpr int kBlockGroups = kBlockTokens / 16;

template <bool kBf16> INLINE Floats load_cached(const std::byte* p, std::size_t element) {
    return kBf16 ? load_bf16(p + 2 * element) : load(reinterpret_cast<const float*>(p) + element);
}

INLINE const std::byte* cache_block(const AttendRows& job, int block) {
    return job.layer->cache + static_cast<std::size_t>(job.table[block]) * job.layer->layout.block_bytes();
}

inline void attend_store(const AttendRows& job) {
    const AttendLayer& layer = *job.layer;
    const CacheLayout& layout = layer.layout;
    const int D = layout.head_dim;
    float* rotated = job.scratch;
    for (int row = job.first_row; row < job.first_row + job.rows; ++row) {
        const int position = job.positions[row], token = position % kBlockTokens;
        std::byte* block = const_cast<std::byte*>(cache_block(job, position / kBlockTokens));
        const float* key = job.k + row * job.kv_stride + job.kv_head * D;
        const float* value = job.v + row * job.kv_stride + job.kv_head * D;
        if (layer.rotates) {
            rotate(key, job.angles + static_cast<std::size_t>(row) * D, rotated, D);
            key = rotated;
        }
        std::byte* keys = block + layout.keys_at(job.kv_head);
        std::byte* values = block + layout.values_at(job.kv_head);
        for (int i = 0; i < D; i += 16) {
            const int count = D - i < 16 ? D - i : 16;
            const Floats k = load_first(key + i, count), v = load_first(value + i, count);
            if (layout.is_bf16) {
                std::uint16_t words[16];
                store_bf16(words, k);
                auto* to = reinterpret_cast<std::uint16_t*>(keys) + i * kBlockTokens + token;
                for (int j = 0; j < count; ++j) to[j * kBlockTokens] = words[j];
                store_bf16(words, v);
                std::memcpy(values + 2 * (static_cast<std::size_t>(token) * D + i), words, 2 * count);
            } else {
                float numbers[16];
                store(numbers, k);
                auto* to = reinterpret_cast<float*>(keys) + i * kBlockTokens + token;
                for (int j = 0; j < count; ++j) to[j * kBlockTokens] = numbers[j];
                store_first(reinterpret_cast<float*>(values) + static_cast<std::size_t>(token) * D + i, v, count);
            }
        }
    }
}

INLINE void fetch_bytes(const std::byte* p, std::size_t nbytes) {
    for (std::size_t at = 0; at < nbytes; at += 64) fetch_ahead(p + at);
}

struct Query {
    int row, head;      // head of this rank
    int position, first; // keys first .. position are seen
};

// scores[q][0 .. 63] = query q times the 64 keys of a block. G groups of sixteen keys at a time.
template <bool kBf16, int Q, int G>
INLINE void score_block(const float* queries, int D, const std::byte* keys, float* scores) {
    for (int group = 0; group < kBlockGroups; group += G) {
        Floats s[Q][G];
        UNROLL for (int q = 0; q < Q; ++q)
            UNROLL for (int g = 0; g < G; ++g) s[q][g] = zeros();
        for (int d = 0; d < D; ++d)
            UNROLL for (int g = 0; g < G; ++g) {
                const Floats key = load_cached<kBf16>(keys, static_cast<std::size_t>(d) * kBlockTokens + (group + g) * 16);
                UNROLL for (int q = 0; q < Q; ++q) s[q][g] = multiply_add(fill(queries[q * D + d]), key, s[q][g]);
            }
        UNROLL for (int q = 0; q < Q; ++q)
            UNROLL for (int g = 0; g < G; ++g) store(scores + q * kBlockTokens + (group + g) * 16, s[q][g]);
    }
}

// sums[q] = sum over keys [from, to) of weights[q][key] * value, G groups of sixteen elements at a time.
template <bool kBf16, int Q, int G>
INLINE void weigh_values(const float* weights, const std::byte* values, int D, int element, int from, int to, float* sums,
                         int width) {
    Floats s[Q][G];
    UNROLL for (int q = 0; q < Q; ++q)
        UNROLL for (int g = 0; g < G; ++g) s[q][g] = zeros();
    for (int key = from; key < to; ++key)
        UNROLL for (int g = 0; g < G; ++g) {
            const Floats value = load_cached<kBf16>(values, static_cast<std::size_t>(key) * D + element + g * 16);
            UNROLL for (int q = 0; q < Q; ++q) s[q][g] = multiply_add(fill(weights[q * kBlockTokens + key]), value, s[q][g]);
        }
    UNROLL for (int q = 0; q < Q; ++q)
        UNROLL for (int g = 0; g < G; ++g) store(sums + q * width + element + g * 16, s[q][g]);
}

template <bool kBf16, int Q> NO_INLINE void attend_queries(const AttendRows& job, const Query* queries) {
    const AttendLayer& layer = *job.layer;
    const CacheLayout& layout = layer.layout;
    const int D = layout.head_dim, width = (D + 15) / 16 * 16;
    float* scaled = job.scratch;                      // (Q, D)
    float* scores = scaled + Q * (D + 16);            // (Q, 64)
    float* now = scores + Q * kBlockTokens;           // (Q, width): the weighted sum of this block
    float* weighted = now + Q * width;                // (Q, width): that of all blocks so far
    int first_block = queries[0].first / kBlockTokens, last_block = 0;
    UNROLL for (int q = 0; q < Q; ++q) {
        const float* query = job.q + queries[q].row * job.q_stride + queries[q].head * D;
        if (layer.rotates) {
            rotate(query, job.angles + static_cast<std::size_t>(queries[q].row) * D, scaled + q * D, D);
            query = scaled + q * D;
        }
        for (int d = 0; d < D; ++d) scaled[q * D + d] = query[d] * layer.scale;
        first_block = std::min(first_block, queries[q].first / kBlockTokens);
        last_block = std::max(last_block, queries[q].position / kBlockTokens);
    }
    float largest_so_far[Q] = {}, total_so_far[Q] = {};
    bool any[Q] = {};
    for (int block = first_block; block <= last_block; ++block) {
        const std::byte* data = cache_block(job, block);
        fetch_bytes(data + layout.values_at(job.kv_head), layout.head_bytes());
        if (block < last_block) fetch_bytes(cache_block(job, block + 1) + layout.keys_at(job.kv_head), layout.head_bytes());
        constexpr int G = Q == 1 ? 4 : Q == 2 ? 2 : 1;
        score_block<kBf16, Q, G>(scaled, D, data + layout.keys_at(job.kv_head), scores);
        const int start = block * kBlockTokens;
        float block_largest[Q] = {}, block_total[Q] = {};
        int from = kBlockTokens, to = 0;
        UNROLL for (int q = 0; q < Q; ++q) {
            const int seen_from = std::max(queries[q].first - start, 0);
            const int seen_to = std::min(queries[q].position + 1 - start, kBlockTokens);
            float* s = scores + q * kBlockTokens;
            if (seen_from >= seen_to) { // another query's block: no weight of this one may count
                for (int i = 0; i < kBlockTokens; i += 16) store(s + i, zeros());
                continue;
            }
            from = std::min(from, seen_from);
            to = std::max(to, seen_to);
            if (layer.slopes) {
                const Floats slope = fill(layer.slopes[queries[q].head]);
                for (int i = 0; i < kBlockTokens; i += 16) {
                    const Floats distance = fill(static_cast<float>(queries[q].position - start - i)) - lane_numbers();
                    store(s + i, load(s + i) - slope * distance);
                }
            }
            const float least = -std::numeric_limits<float>::infinity();
            for (int i = 0; i < seen_from; ++i) s[i] = least;
            for (int i = seen_to; i < kBlockTokens; ++i) s[i] = least;
            Floats most = load(s);
            for (int i = 16; i < kBlockTokens; i += 16) most = larger(most, load(s + i));
            block_largest[q] = largest(most);
            Floats total = zeros();
            for (int i = 0; i < kBlockTokens; i += 16) {
                const Floats weight = exponential(load(s + i) - fill(block_largest[q]));
                store(s + i, weight);
                total = total + weight;
            }
            block_total[q] = sum(total);
        }
        const std::byte* values = data + layout.values_at(job.kv_head);
        int element = 0;
        if constexpr (Q <= 2)
            for (; element + 64 / Q <= width; element += 64 / Q)
                weigh_values<kBf16, Q, 4 / Q>(scores, values, D, element, from, to, now, width);
        for (; element < width; element += 16) weigh_values<kBf16, Q, 1>(scores, values, D, element, from, to, now, width);
        UNROLL for (int q = 0; q < Q; ++q) {
            if (block_total[q] == 0) continue;
            float* sums = weighted + q * width;
            const float* added = now + q * width;
            if (!any[q]) {
                any[q] = true;
                largest_so_far[q] = block_largest[q];
                total_so_far[q] = block_total[q];
                std::memcpy(sums, added, width * sizeof(float));
                continue;
            }
            const float most = std::max(largest_so_far[q], block_largest[q]);
            float factors[16] = {largest_so_far[q] - most, block_largest[q] - most};
            store(factors, exponential(load(factors)));
            const Floats before = fill(factors[0]), here = fill(factors[1]);
            total_so_far[q] = total_so_far[q] * factors[0] + block_total[q] * factors[1];
            for (int i = 0; i < width; i += 16) store(sums + i, load(sums + i) * before + load(added + i) * here);
            largest_so_far[q] = most;
        }
    }
    UNROLL for (int q = 0; q < Q; ++q) {
        float* out = job.out + queries[q].row * job.out_stride + queries[q].head * D;
        const Floats total = fill(total_so_far[q]);
        for (int i = 0; i < D; i += 16) store_first(out + i, load(weighted + q * width + i) / total, D - i);
    }
}

template <bool kBf16, int... kCount>
void attend_some(const AttendRows& job, const Query* queries, int count, std::integer_sequence<int, kCount...>) {
    ((count == kCount + 1 ? attend_queries<kBf16, kCount + 1>(job, queries) : void()), ...);
}

inline void attend(const AttendRows& job) {
    const AttendLayer& layer = *job.layer;
    const int share = layer.queries_per_kv_head_of_model;
    const int kv_head = layer.first_kv_head + job.kv_head; // of the model
    const int first_head = std::max(kv_head * share - layer.first_head, 0);
    const int last_head = std::min((kv_head + 1) * share - layer.first_head, layer.heads);
    Query queries[kBlockQueries];
    int count = 0;
    const auto flush = [&] {
        const auto sizes = std::make_integer_sequence<int, kBlockQueries>();
        if (layer.layout.is_bf16)
            attend_some<true>(job, queries, count, sizes);
        else
            attend_some<false>(job, queries, count, sizes);
        count = 0;
    };
    for (int row = job.first_row; row < job.first_row + job.rows; ++row)
        for (int head = first_head; head < last_head; ++head) {
            const int position = job.positions[row];
            queries[count++] = {row, head, position, layer.window ? std::max(0, position + 1 - layer.window) : 0};
            if (count == kBlockQueries) flush();
        }
    if (count) flush();
}

inline std::size_t attend_scratch_floats(const AttendLayer& layer) {
    const std::size_t D = layer.layout.head_dim, width = (D + 15) / 16 * 16;
    return kBlockQueries * (D + 16 + kBlockTokens + 2 * width) + 64;
}
