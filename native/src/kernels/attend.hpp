// Attention over the block cache. Included inside a namespace, with the instruction set switched on.
//
// One arithmetic for every row, whatever runs beside it: of each block of 64 keys the maximum, the sum of exponentials
// and the weighted sum of values, blocks combined from left to right. A kernel works on several queries of the same
// sequence and key-value head at once: rows of a prompt, or the query heads that share a key-value head.
//
// What a query sees of some keys is a record: the largest score, the sum of exponentials, and from kSumsAt on the
// weighted sum of the values. Nothing seen: the sum of exponentials is 0.

constexpr int kSumsAt = 16;

constexpr int kBlockGroups = kBlockTokens / 16;

template <bool kBf16> INLINE Floats load_cached(const std::byte* p, std::size_t element) {
    return kBf16 ? load_bf16(p + 2 * element) : load(reinterpret_cast<const float*>(p) + element);
}

// `count` elements from there on, then zeros.
template <bool kBf16> INLINE Floats load_cached_first(const std::byte* p, std::size_t element, int count) {
    constexpr std::size_t size = kBf16 ? 2 : 4;
    std::byte elements[16 * size] = {};
    std::memcpy(elements, p + size * element, size * count);
    return load_cached<kBf16>(elements, 0);
}

INLINE std::byte* cache_block(const AttendRows& job, int block) {
    return job.layer->cache + static_cast<std::size_t>(job.table[block]) * job.layer->layout.block_bytes();
}

// Stores what a row adds to one key-value head.
inline void store_row(const AttendRows& job, int row, int kv_head) {
    const AttendLayer& layer = *job.layer;
    const CacheLayout& layout = layer.layout;
    const int D = layout.head_dim, position = job.positions[row], token = position % kBlockTokens;
    std::byte* block = cache_block(job, position / kBlockTokens);
    const float* key = job.k + row * job.kv_stride + kv_head * D;
    const float* value = job.v + row * job.kv_stride + kv_head * D;
    if (layer.rotates) {
        rotate(key, job.angles + static_cast<std::size_t>(row) * D, job.scratch, D);
        key = job.scratch;
    }
    std::byte* keys = block + layout.keys_at(kv_head);
    std::byte* values = block + layout.values_at(kv_head);
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

inline void attend_store(const AttendRows& job) {
    for (int row = job.first_row; row < job.first_row + job.rows; ++row) store_row(job, row, job.kv_head);
}

// How many groups of sixteen keys or elements fit into registers beside each other, for so many queries.
constexpr int groups_at_once(int queries) {
    constexpr int most = kRegisterBytes / 4; // of sixteen lanes: half of the registers and more
    return queries * 4 <= most ? 4 : queries * 2 <= most ? 2 : 1;
}

constexpr int sums_width(int head_dim) { return (head_dim + 15) / 16 * 16; }
constexpr int record_floats(int head_dim) { return kSumsAt + sums_width(head_dim); }

struct Query {
    int row, head;      // head of this rank
    int position, first; // keys first .. position are seen
};

// scores[q][...] = query q times the keys of a block, of the first `groups` groups of sixteen. G of them at a time.
template <bool kBf16, int Q, int G>
INLINE void score_block(const float* queries, int D, const std::byte* keys, int groups, float* scores) {
    for (int group = 0; group < groups; group += G) {
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

// sums[q] = sum over keys [from, to) of weights[q][key] * value, of G groups of sixteen elements; kPart: of the last ones of a
// head, which are fewer.
template <bool kBf16, int Q, int G, bool kPart = false>
INLINE void weigh_values(const float* weights, const std::byte* values, int D, int element, int from, int to, float* sums,
                         int width) {
    Floats s[Q][G];
    UNROLL for (int q = 0; q < Q; ++q)
        UNROLL for (int g = 0; g < G; ++g) s[q][g] = zeros();
    for (int key = from; key < to; ++key)
        UNROLL for (int g = 0; g < G; ++g) {
            const std::size_t at = static_cast<std::size_t>(key) * D + element + g * 16;
            const Floats value = kPart ? load_cached_first<kBf16>(values, at, D - element) : load_cached<kBf16>(values, at);
            UNROLL for (int q = 0; q < Q; ++q) s[q][g] = multiply_add(fill(weights[q * kBlockTokens + key]), value, s[q][g]);
        }
    UNROLL for (int q = 0; q < Q; ++q)
        UNROLL for (int g = 0; g < G; ++g) store(sums + q * width + element + g * 16, s[q][g]);
}

// Of one query: scores of G groups of keys become weights, exponentials of what they are below the largest, which head[0]
// becomes; head[1] their sum. Only the keys [from, to) of the block count, which are all unless kMasked.
template <int G, bool kMasked>
INLINE void weigh_scores(const AttendLayer& layer, const Query& query, int start, int from, int to, float* scores, float* head) {
    Floats s[G];
    UNROLL for (int g = 0; g < G; ++g) s[g] = load(scores + 16 * g);
    if (layer.slopes) {
        const Floats slope = fill(layer.slopes[query.head]);
        const int position = query.position - start;
        UNROLL for (int g = 0; g < G; ++g) s[g] = s[g] - slope * (fill(static_cast<float>(position - 16 * g)) - lane_numbers());
    }
    if constexpr (kMasked) {
        const Floats least = fill(-std::numeric_limits<float>::infinity());
        UNROLL for (int g = 0; g < G; ++g) {
            s[g] = where_negative(lane_numbers() - fill(static_cast<float>(to - 16 * g)), s[g], least);
            s[g] = where_negative(lane_numbers() - fill(static_cast<float>(from - 16 * g)), least, s[g]);
        }
    }
    Floats most = s[0];
    UNROLL for (int g = 1; g < G; ++g) most = larger(most, s[g]);
    head[0] = largest(most);
    Floats total = zeros();
    UNROLL for (int g = 0; g < G; ++g) {
        const Floats weight = exponential(s[g] - fill(head[0]));
        store(scores + 16 * g, weight);
        total = total + weight;
    }
    head[1] = sum(total);
}

// Writes the records of Q queries for one block of keys. scaled: (Q, D) queries times the scale; scores: room for (Q, 64).
template <bool kBf16, int Q>
NO_INLINE void attend_block(const AttendLayer& layer, const Query* queries, const float* scaled, const std::byte* keys,
                            const std::byte* values, int start, float* scores, float* records) {
    const int D = layer.layout.head_dim, record = record_floats(D);
    constexpr int G = groups_at_once(Q);
    int last = 0;
    UNROLL for (int q = 0; q < Q; ++q) last = std::max(last, queries[q].position);
    const int groups = std::min((last - start) / 16 + 1, kBlockGroups), keys_read = 16 * groups; // of which some see the last
    constexpr int few = std::max(G / 2, 1);
    if (groups <= few)
        score_block<kBf16, Q, few>(scaled, D, keys, groups, scores);
    else
        score_block<kBf16, Q, G>(scaled, D, keys, groups, scores);
    int from = kBlockTokens, to = 0;
    UNROLL for (int q = 0; q < Q; ++q) {
        const int seen_from = std::max(queries[q].first - start, 0);
        const int seen_to = std::min(queries[q].position + 1 - start, kBlockTokens);
        float *s = scores + q * kBlockTokens, *head = records + q * record;
        if (seen_from >= seen_to) { // another query's block: no weight of this one may count
            for (int i = 0; i < keys_read; i += 16) store(s + i, zeros());
            head[0] = head[1] = 0;
            continue;
        }
        from = std::min(from, seen_from);
        to = std::max(to, seen_to);
        if (seen_from == 0 && seen_to == kBlockTokens) {
            weigh_scores<kBlockGroups, false>(layer, queries[q], start, seen_from, seen_to, s, head);
            continue;
        }
        switch (groups) {
        case 1: weigh_scores<1, true>(layer, queries[q], start, seen_from, seen_to, s, head); break;
        case 2: weigh_scores<2, true>(layer, queries[q], start, seen_from, seen_to, s, head); break;
        case 3: weigh_scores<3, true>(layer, queries[q], start, seen_from, seen_to, s, head); break;
        default: weigh_scores<kBlockGroups, true>(layer, queries[q], start, seen_from, seen_to, s, head);
        }
    }
    int element = 0;
    for (; element + 16 * G <= D; element += 16 * G)
        weigh_values<kBf16, Q, G>(scores, values, D, element, from, to, records + kSumsAt, record);
    for (; element + 16 <= D; element += 16)
        weigh_values<kBf16, Q, 1>(scores, values, D, element, from, to, records + kSumsAt, record);
    if (element < D) weigh_values<kBf16, Q, 1, true>(scores, values, D, element, from, to, records + kSumsAt, record);
}

// Merges what some queries have seen with what they see of the keys that follow.
INLINE void add_records(float* seen, const float* added, int count, int record) {
    static_assert(kBlockQueries <= 16);
    float before[16] = {}, here[16] = {};
    for (int q = 0; q < count; ++q) {
        const float most = std::max(seen[q * record], added[q * record]);
        before[q] = seen[q * record] - most;
        here[q] = added[q * record] - most;
    }
    store(before, exponential(load(before)));
    store(here, exponential(load(here)));
    for (int q = 0; q < count; ++q) {
        float* to = seen + q * record;
        const float* from = added + q * record;
        if (from[1] == 0) continue;
        if (to[1] == 0) {
            std::memcpy(to, from, record * sizeof(float));
            continue;
        }
        to[0] = std::max(to[0], from[0]);
        to[1] = to[1] * before[q] + from[1] * here[q];
        for (int i = kSumsAt; i < record; i += 16) store(to + i, load(to + i) * fill(before[q]) + load(from + i) * fill(here[q]));
    }
}
INLINE void clear_record(float* seen) { seen[0] = seen[1] = 0; }

INLINE void finish_record(const AttendRows& job, const Query& query, const float* seen) {
    const int D = job.layer->layout.head_dim;
    float* out = job.out + query.row * job.out_stride + query.head * D;
    const Floats total = fill(seen[1]);
    for (int i = 0; i < D; i += 16) store_first(out + i, load(seen + kSumsAt + i) / total, D - i);
}

INLINE void scale_query(const AttendRows& job, const Query& query, float* scaled) {
    const AttendLayer& layer = *job.layer;
    const int D = layer.layout.head_dim;
    const float* from = job.q + query.row * job.q_stride + query.head * D;
    if (layer.rotates) {
        rotate(from, job.angles + static_cast<std::size_t>(query.row) * D, scaled, D);
        from = scaled;
    }
    for (int d = 0; d < D; d += 16) store_first(scaled + d, load_first(from + d, D - d) * fill(layer.scale), D - d);
}

using AttendBlock = void (*)(const AttendLayer&, const Query*, const float*, const std::byte*, const std::byte*, int, float*, float*);

template <bool kBf16, int... kCount> AttendBlock attend_block_of(int count, std::integer_sequence<int, kCount...>) {
    constexpr AttendBlock kernels[] = {attend_block<kBf16, kCount + 1>...};
    return kernels[count - 1];
}

// attend_block() for so many queries, at most kBlockQueries.
inline AttendBlock attend_block_of(const AttendLayer& layer, int count) {
    constexpr auto sizes = std::make_integer_sequence<int, kBlockQueries>();
    return layer.layout.is_bf16 ? attend_block_of<true>(count, sizes) : attend_block_of<false>(count, sizes);
}

INLINE Query query_of(const AttendRows& job, int row, int head) {
    const int position = job.positions[row], window = job.layer->window;
    return {row, head, position, window ? std::max(0, position + 1 - window) : 0};
}

// The query heads of this rank that read a key-value head.
struct Heads {
    int first, last;
};
INLINE Heads heads_of(const AttendLayer& layer, int kv_head) {
    const int share = layer.queries_per_kv_head_of_model, of_model = layer.first_kv_head + kv_head;
    return {std::max(of_model * share - layer.first_head, 0), std::min((of_model + 1) * share - layer.first_head, layer.heads)};
}

// Up to kBlockQueries queries from their first key to their last.
inline void attend_queries(const AttendRows& job, const Query* queries, int count) {
    const AttendLayer& layer = *job.layer;
    const CacheLayout& layout = layer.layout;
    const int D = layout.head_dim, record = record_floats(D);
    float* scaled = job.scratch;
    float* scores = scaled + kBlockQueries * D;
    float* added = scores + kBlockQueries * kBlockTokens;
    float* seen = added + kBlockQueries * record;
    int first_block = queries[0].first / kBlockTokens, last_block = 0;
    for (int q = 0; q < count; ++q) {
        scale_query(job, queries[q], scaled + q * D);
        first_block = std::min(first_block, queries[q].first / kBlockTokens);
        last_block = std::max(last_block, queries[q].position / kBlockTokens);
        clear_record(seen + q * record);
    }
    const AttendBlock attend_block = attend_block_of(layer, count);
    for (int block = first_block; block <= last_block; ++block) {
        const std::byte* data = cache_block(job, block);
        attend_block(layer, queries, scaled, data + layout.keys_at(job.kv_head), data + layout.values_at(job.kv_head),
                     block * kBlockTokens, scores, added);
        add_records(seen, added, count, record);
    }
    for (int q = 0; q < count; ++q) finish_record(job, queries[q], seen + q * record);
}

inline void attend(const AttendRows& job) {
    const Heads heads = heads_of(*job.layer, job.kv_head);
    Query queries[kBlockQueries];
    int count = 0;
    for (int row = job.first_row; row < job.first_row + job.rows; ++row)
        for (int head = heads.first; head < heads.last; ++head) {
            queries[count++] = query_of(job, row, head);
            if (count == kBlockQueries) {
                attend_queries(job, queries, count);
                count = 0;
            }
        }
    if (count) attend_queries(job, queries, count);
}

// Fetches the keys and values of a head in a block that is not full: with holes between, the processor does not foresee them.
INLINE void fetch_head(const CacheLayout& layout, const std::byte* keys, int tokens) {
    const std::size_t token_bytes = layout.element_bytes(), read = tokens * token_bytes;
    for (int d = 0; d < layout.head_dim; ++d)
        for (std::size_t i = 0; i < read; i += 64) __builtin_prefetch(keys + d * kBlockTokens * token_bytes + i, 0, 2);
    const std::byte* values = keys + layout.head_bytes();
    for (std::size_t i = 0; i < read * layout.head_dim; i += 64) __builtin_prefetch(values + i, 0, 2);
}

inline std::size_t attend_block_floats(const AttendLayer& layer) {
    return static_cast<std::size_t>(layer.queries_per_kv_head_of_model) * record_floats(layer.layout.head_dim);
}

// The record of a query head, counted from the first that reads its key-value head, for one of the blocks of a cut head.
template <class Float> INLINE Float* record_of(const AttendLayer& layer, Float* records, int block, int head) {
    return records + block * attend_block_floats(layer) + head * record_floats(layer.layout.head_dim);
}

// Memory is read in its order: of each block all heads, before the next.
inline void attend_row(const AttendRows& job, const KeyRange& range, float* records) {
    const AttendLayer& layer = *job.layer;
    const CacheLayout& layout = layer.layout;
    const int D = layout.head_dim, record = record_floats(D);
    const int first_head = heads_of(layer, range.first_kv_head).first, last_head = heads_of(layer, range.last_kv_head - 1).last;
    float* scaled = job.scratch + sums_width(D); // (heads, D), behind the row's rotated key
    float* scores = scaled + layer.heads * D;
    float* added = scores + kBlockQueries * kBlockTokens;
    float* seen = added + kBlockQueries * record;
    for (int head = first_head; head < last_head; ++head) {
        scale_query(job, query_of(job, job.first_row, head), scaled + (head - first_head) * D);
        clear_record(seen + (head - first_head) * record);
    }
    for (int block = range.first_block; block < range.last_block; ++block) {
        const std::byte* data = cache_block(job, block);
        const int tokens = job.positions[job.first_row] + 1 - block * kBlockTokens; // up to the row's own
        const bool is_full = tokens >= kBlockTokens, is_own = tokens <= kBlockTokens;
        if (!is_full) fetch_head(layout, data + layout.keys_at(range.first_kv_head), tokens);
        for (int kv_head = range.first_kv_head; kv_head < range.last_kv_head; ++kv_head) {
            if (!is_full && kv_head + 1 < range.last_kv_head) fetch_head(layout, data + layout.keys_at(kv_head + 1), tokens);
            if (is_own) store_row(job, job.first_row, kv_head);
            const Heads heads = heads_of(layer, kv_head);
            for (int head = heads.first; head < heads.last; head += kBlockQueries) {
                const int count = std::min(kBlockQueries, heads.last - head);
                Query queries[kBlockQueries];
                for (int q = 0; q < count; ++q) queries[q] = query_of(job, job.first_row, head + q);
                attend_block_of(layer, count)(layer, queries, scaled + (head - first_head) * D, data + layout.keys_at(kv_head),
                                              data + layout.values_at(kv_head), block * kBlockTokens, scores, added);
                if (records)
                    std::memcpy(record_of(layer, records, block - range.first_block, head - heads.first), added,
                                count * record * sizeof(float));
                else
                    add_records(seen + (head - first_head) * record, added, count, record);
            }
        }
    }
    if (records) return;
    for (int head = first_head; head < last_head; ++head)
        finish_record(job, query_of(job, job.first_row, head), seen + (head - first_head) * record);
}

inline void attend_finish(const AttendRows& job, const KeyRange& range, const float* records) {
    const AttendLayer& layer = *job.layer;
    const Heads heads = heads_of(layer, range.first_kv_head);
    float* seen = job.scratch;
    for (int head = heads.first; head < heads.last; ++head) {
        clear_record(seen);
        for (int block = 0; block < range.last_block - range.first_block; ++block)
            add_records(seen, record_of(layer, records, block, head - heads.first), 1, record_floats(layer.layout.head_dim));
        finish_record(job, query_of(job, job.first_row, head), seen);
    }
}

inline std::size_t attend_scratch_floats(const AttendLayer& layer) {
    const std::size_t D = layer.layout.head_dim, record = record_floats(layer.layout.head_dim);
    const std::size_t queries = std::max(kBlockQueries, layer.heads);
    return record + queries * (D + record) + kBlockQueries * (kBlockTokens + record) + 64;
}
