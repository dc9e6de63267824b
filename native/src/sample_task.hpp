#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "sample.hpp"

namespace anthesis {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLeastFinite = std::numeric_limits<float>::lowest();
constexpr Extremes kNone = {std::numeric_limits<std::int32_t>::min(), std::numeric_limits<std::int32_t>::max()};

inline void extend(Extremes& all, const Extremes& more) {
    all.largest = std::max(all.largest, more.largest);
    all.smallest = std::min(all.smallest, more.smallest);
}

// Neither NaN nor +inf among them; the NaNs of negative sign come before -inf.
inline bool bounded(const Extremes& found) {
    return found.largest < order_of(kInfinity) && found.smallest >= order_of(-kInfinity);
}

inline int blocks_of(int ids) { return (ids + kBlockIds - 1) / kBlockIds; }

// A parameter that rounding to fp32 made 0 or infinite, as the nearest number that can be divided by.
inline double clipped(float parameter) {
    return std::min(std::max(parameter, std::numeric_limits<float>::denorm_min()), std::numeric_limits<float>::max());
}

struct Sampler::Kept {
    Scored last = {-std::numeric_limits<double>::infinity(), std::numeric_limits<int>::max()}; // in order of likelihood

    bool has(const Scored& token) const { return !last.before(token); }

    void apply_min_p(float min_p, double largest) {
        if (!(min_p > 0)) return;
        const Scored limit = {largest + std::log(static_cast<double>(min_p)), std::numeric_limits<int>::max()};
        if (limit.before(last)) last = limit;
    }
};

struct Sampler::Task {
    const SampleRow& row;
    bool greedy = row.temperature <= 0;
    double temperature = greedy ? 1 : clipped(row.temperature);
    double penalty = clipped(row.repetition_penalty);
    std::uint64_t key = mix(mix(row.seed + kGolden) + static_cast<std::uint64_t>(row.position) * kGolden);
    int blocks = blocks_of(row.usable);
    Extremes logits = kNone; // set by merge, as is what follows
    Scored best = {};

    double score(float logit) const { return logit / temperature; }
    double penalised(float logit) const {
        const double plain = logit;
        return (plain > 0 ? plain / penalty : plain * penalty) / temperature;
    }

    int ids_in(int block) const { return std::min(kBlockIds, row.usable - block * kBlockIds); }

    int id(int block, int i) const { return row.first_id + block * kBlockIds + i; }

    // The block's usable ids whose score the penalty changes, as bits.
    std::uint64_t seen(int block) const {
        if (penalty == 1) return 0;
        const int first = id(block, 0), shift = first % 8;
        const std::uint8_t* bits = row.seen + first / 8;
        const int bytes = (row.vocab + 7) / 8 - first / 8;
        std::uint64_t word = 0;
        if (bytes >= 8) // in one piece, which the loop would not be
            for (int i = 0; i < 8; ++i) word |= std::uint64_t{bits[i]} << (8 * i);
        else
            for (int i = 0; i < bytes; ++i) word |= std::uint64_t{bits[i]} << (8 * i);
        if (shift != 0) word = word >> shift | (bytes > 8 ? std::uint64_t{bits[8]} << (64 - shift) : 0);
        const int ids = ids_in(block);
        return ids == kBlockIds ? word : word & ((std::uint64_t{1} << ids) - 1);
    }

    // The lowest finite logit that does, where all above do; +inf where none of this row's does.
    template <class Does> float lowest_logit(const Does& does) const {
        std::int64_t low = order_of(kLeastFinite), high = std::int64_t{logits.largest} + 1;
        while (low < high) {
            const std::int64_t middle = low + (high - low) / 2;
            if (does(of_order(static_cast<std::int32_t>(middle))))
                high = middle;
            else
                low = middle + 1;
        }
        return low > logits.largest ? kInfinity : of_order(static_cast<std::int32_t>(low));
    }

    // What a sum of score and noise must reach to be chosen rather than `drawn`, less more than what rounding adds.
    static double least(const Scored& drawn) { return drawn.score - 1e-3 - std::abs(drawn.score) * 0x1p-49; }

    void draw(const Scored& token, std::uint64_t hash, Scored& drawn) const {
        const Scored sum = {token.score + gumbel_noise(hash), token.id};
        if (sum.before(drawn)) drawn = sum;
    }

    // What every thread's draw starts from: the most likely token is always kept.
    Scored first_drawn() const { return {best.score + gumbel_noise(token_hash(key, best.id)), best.id}; }
};

// Lists the thread's tokens whose logits are finite and from `low` up to, but not including, `high`, and those in
// `seen_` whose score does.
template <class Does>
void Sampler::list_tokens(const Team& team, const Task& task, float low, float high, const Does& score_does) {
    const auto [first_block, last_block] = team.share(task.blocks);
    Part& part = parts_[team.thread];
    Scored* listed = list_.get() + first_block * kBlockIds;
    const Scored* seen = seen_.get() + first_block * kBlockIds;
    for (int i = 0; i < part.seen; ++i)
        if (score_does(seen[i].score)) *listed++ = seen[i];
    float copy[kBlockIds];
    low = std::max(low, kLeastFinite);
    for (int block = first_block; block < last_block; ++block) {
        if (largest_[block] < low) continue;
        const float* logits = load(task, block, copy);
        if (kernels_->count(logits, low, high) == 0) continue;
        for (int i = 0; i < kBlockIds; ++i)
            if (logits[i] >= low && logits[i] < high) *listed++ = {task.score(logits[i]), task.id(block, i)};
    }
    part.listed = static_cast<int>(listed - (list_.get() + first_block * kBlockIds));
}

// By one thread: what every rank brings, behind each other in rank order, at `all`; where there is one rank, its own.
template <class T> std::span<T> Sampler::exchange(Communicator* ranks, T* own, std::size_t count, T* all) noexcept {
    if (!ranks) return {own, count};
    T* end = all;
    for (const auto part : ranks->all_gather(as_bytes_of(own, count))) {
        const auto things = as_things<T>(part);
        end = std::copy(things.begin(), things.end(), end);
    }
    return {all, end};
}

} // namespace anthesis
