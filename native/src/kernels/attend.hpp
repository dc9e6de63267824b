// Attention over the block cache. Included inside a namespace, after cache.hpp.
//
// One arithmetic for every row, whatever runs beside it: of each block of 64 keys the maximum, the sum of exponentials
// and the weighted sum of values, blocks combined from left to right. A kernel works on several queries of the same
// sequence and key-value head at once: rows of a prompt, or the query heads that share a key-value head.

// How many groups of sixteen keys or elements fit into registers beside each other, for so many queries.
constexpr int groups_at_once(int queries) {
    constexpr int most = kRegisterBytes / 4; // of sixteen lanes: half of the registers and more
    return queries * 4 <= most ? 4 : queries * 2 <= most ? 2 : 1;
}

struct Query {
    int row, head;      // head of this rank
    int position, first; // keys first .. position are seen
};

// scores[q][...] = query q times the keys of a block, of the first `groups` groups of sixteen. G of them at a time.
template <bool kBf16, int Q, int G>
INLINE void score_block(const float* queries, const CacheLayout& layout, const std::byte* keys, int groups, float* scores) {
    const std::size_t stride = inputs_in<kBf16>(whole_groups(layout.head_dim));
    for (int group = 0; group < groups; group += G) {
        Floats s[G][Q];
        UNROLL for (int g = 0; g < G; ++g)
            UNROLL for (int q = 0; q < Q; ++q) s[g][q] = zeros();
        const auto* x = reinterpret_cast<const typename Lanes<kBf16>::Input*>(queries);
        const std::byte* at = keys + group * 64;
        for (int lane = 0; lane < layout.key_lanes(); ++lane, ++x, at += kBlockTokens * 4)
            UNROLL for (int g = 0; g < G; ++g) {
                fetch_cache<Q>(at + g * 64);
                Lanes<kBf16>::add(at + g * 64, x, stride, s[g]);
            }
        UNROLL for (int g = 0; g < G; ++g)
            UNROLL for (int q = 0; q < Q; ++q) store(scores + q * kBlockTokens + (group + g) * 16, s[g][q]);
    }
}

// sums[q] = sum over keys [from, to) of weights[q][key] * value, of G groups of sixteen elements; kPart: of the last ones of a
// head, which are fewer. Half of a pair may be no key of these, and anything: it counts as zero.
template <bool kBf16, int Q, int G, bool kPart = false>
INLINE void weigh_values(const float* weights, const std::byte* values, int D, int element, int from, int to, float* sums,
                         int width) {
    constexpr int numbers = Lanes<kBf16>::numbers;
    constexpr std::size_t stride = inputs_in<kBf16>(kBlockTokens);
    const auto* inputs = reinterpret_cast<const typename Lanes<kBf16>::Input*>(weights);
    Floats s[G][Q];
    UNROLL for (int g = 0; g < G; ++g)
        UNROLL for (int q = 0; q < Q; ++q) s[g][q] = zeros();
    const auto at = [&](int lane, int g) { return values + 4 * (static_cast<std::size_t>(lane) * D + element + g * 16); };
    const auto add_some = [&](int lane, std::uint32_t mask) {
        UNROLL for (int g = 0; g < G; ++g)
            Lanes<kBf16>::add(SomeLanes(at(lane, g), kPart ? D - element : 16, mask).lanes(), inputs + lane, stride, s[g]);
    };
    if (from % numbers != 0) add_some(from++ / numbers, 0xffff0000);
    for (int lane = from / numbers; lane < to / numbers; ++lane) {
        if constexpr (kPart)
            add_some(lane, 0xffffffff);
        else
            UNROLL for (int g = 0; g < G; ++g) {
                fetch_cache<Q>(at(lane, g));
                Lanes<kBf16>::add(at(lane, g), inputs + lane, stride, s[g]);
            }
    }
    if (to % numbers != 0) add_some(to / numbers, 0x0000ffff);
    UNROLL for (int g = 0; g < G; ++g)
        UNROLL for (int q = 0; q < Q; ++q) store(sums + q * width + element + g * 16, s[g][q]);
}

// Of one query: weights of G groups of keys, exponentials of what their scores are below the largest, which head[0] becomes;
// head[1] the sum of the weights. Only the keys [from, to) of the block count, which are all unless kMasked.
template <bool kBf16, int G, bool kMasked>
INLINE void weigh_scores(const AttendLayer& layer, const Query& query, int start, int from, int to, const float* scores,
                         float* weights, float* head) {
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
    auto* inputs = reinterpret_cast<typename Lanes<kBf16>::Input*>(weights);
    Floats total = zeros();
    UNROLL for (int g = 0; g < G; ++g)
        total = total + Lanes<kBf16>::store_inputs(inputs + 16 / Lanes<kBf16>::numbers * g, exponential(s[g] - fill(head[0])));
    head[1] = sum(total);
}

// Writes the records of Q queries for one block of keys, which begins with the token `start`.
template <bool kBf16, int Q>
NO_INLINE void attend_block(const AttendLayer& layer, const Query* queries, const float* inputs, const std::byte* keys,
                            const std::byte* values, int start, const AttendScratch& scratch) {
    const int D = layer.layout.head_dim, record = record_floats(D);
    constexpr int G = groups_at_once(Q);
    float *scores = scratch.scores, *weights = scratch.weights, *records = scratch.added;
    int last = 0;
    UNROLL for (int q = 0; q < Q; ++q) last = std::max(last, queries[q].position);
    const int groups = std::min((last - start) / 16 + 1, kBlockGroups); // of which some see the last
    constexpr int few = std::max(G / 2, 1);
    if (groups <= few)
        score_block<kBf16, Q, few>(inputs, layer.layout, keys, groups, scores);
    else
        score_block<kBf16, Q, G>(inputs, layer.layout, keys, groups, scores);
    int from = kBlockTokens, to = 0;
    UNROLL for (int q = 0; q < Q; ++q) {
        const int seen_from = std::max(queries[q].first - start, 0);
        const int seen_to = std::min(queries[q].position + 1 - start, kBlockTokens);
        float *s = scores + q * kBlockTokens, *w = weights + q * kBlockTokens, *head = records + q * record;
        if (seen_from >= seen_to) { // another query's block: no weight of this one may count
            std::memset(w, 0, kBlockTokens * sizeof(float));
            head[0] = head[1] = 0;
            continue;
        }
        from = std::min(from, seen_from);
        to = std::max(to, seen_to);
        if (seen_from == 0 && seen_to == kBlockTokens) {
            weigh_scores<kBf16, kBlockGroups, false>(layer, queries[q], start, seen_from, seen_to, s, w, head);
            continue;
        }
        switch (groups) {
        case 1: weigh_scores<kBf16, 1, true>(layer, queries[q], start, seen_from, seen_to, s, w, head); break;
        case 2: weigh_scores<kBf16, 2, true>(layer, queries[q], start, seen_from, seen_to, s, w, head); break;
        case 3: weigh_scores<kBf16, 3, true>(layer, queries[q], start, seen_from, seen_to, s, w, head); break;
        default: weigh_scores<kBf16, kBlockGroups, true>(layer, queries[q], start, seen_from, seen_to, s, w, head);
        }
    }
    int element = 0;
    for (; element + 16 * G <= D; element += 16 * G)
        weigh_values<kBf16, Q, G>(weights, values, D, element, from, to, records + kSumsAt, record);
    for (; element + 16 <= D; element += 16)
        weigh_values<kBf16, Q, 1>(weights, values, D, element, from, to, records + kSumsAt, record);
    if (element < D) weigh_values<kBf16, Q, 1, true>(weights, values, D, element, from, to, records + kSumsAt, record);
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

// The inputs of a query: times the scale.
INLINE void prepare_query(const AttendRows& job, const Query& query, float* rotated, float* inputs) {
    const AttendLayer& layer = *job.layer;
    const int D = layer.layout.head_dim;
    const float* from = job.q + query.row * job.q_stride + query.head * D;
    if (layer.rotates) {
        rotate(from, job.angles + static_cast<std::size_t>(query.row) * D, rotated, D);
        from = rotated;
    }
    for (int d = 0; d < D; d += 16) {
        const Floats scaled = load_first(from + d, D - d) * fill(layer.scale);
        if (layer.layout.is_bf16)
            Lanes<true>::store_inputs(reinterpret_cast<Bf16Pair*>(inputs) + d / 2, scaled);
        else
            store(inputs + d, scaled);
    }
}

using AttendBlock = void (*)(const AttendLayer&, const Query*, const float*, const std::byte*, const std::byte*, int, const AttendScratch&);

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
    const int width = whole_groups(layout.head_dim), record = record_floats(layout.head_dim);
    const AttendScratch scratch(layer, job.scratch);
    int first_block = queries[0].first / kBlockTokens, last_block = 0;
    for (int q = 0; q < count; ++q) {
        prepare_query(job, queries[q], scratch.rotated, scratch.queries + q * width);
        first_block = std::min(first_block, queries[q].first / kBlockTokens);
        last_block = std::max(last_block, queries[q].position / kBlockTokens);
        clear_record(scratch.seen + q * record);
    }
    const AttendBlock attend_block = attend_block_of(layer, count);
    for (int block = first_block; block <= last_block; ++block) {
        const std::byte* data = cache_block(job, block);
        attend_block(layer, queries, scratch.queries, data + layout.keys_at(job.kv_head), data + layout.values_at(job.kv_head),
                     block * kBlockTokens, scratch);
        add_records(scratch.seen, scratch.added, count, record);
    }
    for (int q = 0; q < count; ++q) finish_record(job, queries[q], scratch.seen + q * record);
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
    const int width = whole_groups(layout.head_dim), record = record_floats(layout.head_dim);
    const int first_head = heads_of(layer, range.first_kv_head).first, last_head = heads_of(layer, range.last_kv_head - 1).last;
    const AttendScratch scratch(layer, job.scratch);
    for (int head = first_head; head < last_head; ++head) {
        prepare_query(job, query_of(job, job.first_row, head), scratch.rotated, scratch.queries + (head - first_head) * width);
        clear_record(scratch.seen + (head - first_head) * record);
    }
    for (int block = range.first_block; block < range.last_block; ++block) {
        const std::byte* data = cache_block(job, block);
        const int tokens = job.positions[job.first_row] + 1 - block * kBlockTokens; // up to the row's own
        const bool is_full = tokens >= kBlockTokens, is_own = tokens <= kBlockTokens;
        if (!is_full) fetch_head(layout, data, range.first_kv_head, tokens);
        for (int kv_head = range.first_kv_head; kv_head < range.last_kv_head; ++kv_head) {
            if (!is_full && kv_head + 1 < range.last_kv_head) fetch_head(layout, data, kv_head + 1, tokens);
            if (is_own) store_row(job, job.first_row, kv_head);
            const Heads heads = heads_of(layer, kv_head);
            for (int head = heads.first; head < heads.last; head += kBlockQueries) {
                const int count = std::min(kBlockQueries, heads.last - head);
                Query queries[kBlockQueries];
                for (int q = 0; q < count; ++q) queries[q] = query_of(job, job.first_row, head + q);
                attend_block_of(layer, count)(layer, queries, scratch.queries + (head - first_head) * width,
                                              data + layout.keys_at(kv_head), data + layout.values_at(kv_head),
                                              block * kBlockTokens, scratch);
                if (records)
                    std::memcpy(record_of(layer, records, block - range.first_block, head - heads.first), scratch.added,
                                count * record * sizeof(float));
                else
                    add_records(scratch.seen + (head - first_head) * record, scratch.added, count, record);
            }
        }
    }
    if (records) return;
    for (int head = first_head; head < last_head; ++head)
        finish_record(job, query_of(job, job.first_row, head), scratch.seen + (head - first_head) * record);
}

inline void attend_finish(const AttendRows& job, const KeyRange& range, const float* records) {
    const AttendLayer& layer = *job.layer;
    const Heads heads = heads_of(layer, range.first_kv_head);
    float* seen = AttendScratch(layer, job.scratch).seen;
    for (int head = heads.first; head < heads.last; ++head) {
        clear_record(seen);
        for (int block = 0; block < range.last_block - range.first_block; ++block)
            add_records(seen, record_of(layer, records, block, head - heads.first), 1, record_floats(layer.layout.head_dim));
        finish_record(job, query_of(job, job.first_row, head), seen);
    }
}

inline std::size_t attend_scratch_floats(const AttendLayer& layer) { return AttendScratch(layer, nullptr).floats; }
