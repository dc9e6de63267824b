#include <algorithm>

#include "sample_task.hpp"

namespace anthesis {

void Sampler::logprobs(const Team& team, const SampleRow& row, std::int32_t token, int top, float& logprob, std::int32_t* top_tokens,
                       float* top_logprobs, Communicator* ranks) noexcept {
    SampleRow plain = row; // the model's own distribution
    plain.temperature = plain.top_p = plain.repetition_penalty = 1;
    plain.min_p = 0;
    plain.top_k = 0;
    SampleRow whole_row = plain;
    whole_row.usable = row.width;
    Task task{plain};
    const Task whole{whole_row};
    scan(team, task);
    const auto [first_id, last_id] = team.share(row.width - row.usable);
    for (int id = row.usable + first_id; id < row.usable + last_id; ++id)
        extend(parts_[team.thread].padding, {order_of(row.logits[id]), order_of(row.logits[id])});
    team.barrier();
    const bool defined = merge(team, task, ranks);
    const Extremes all = merged_.all;
    const double largest = of_order(all.largest);
    if (defined) {
        const auto [first_block, last_block] = team.share(whole.blocks);
        float copy[kBlockIds];
        for (int block = first_block; block < last_block; ++block)
            sums_[block] = kernels_->exponentials(load(whole, block, copy), largest);
        if (top > 0) list_tokens(team, task, lower_limit(team, task, top), kInfinity, [](double) { return false; });
    }
    team.barrier();
    if (team.thread == 0) {
        const auto likelier = [](const Scored& a, const Scored& b) { return a.before(b); };
        const auto most_likely = [&](std::span<Scored> tokens) {
            const auto count = std::min(static_cast<std::size_t>(top), tokens.size());
            std::partial_sort(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(count), tokens.end(), likelier);
            return tokens.first(count);
        };
        std::span<Scored> tokens;
        if (defined && top > 0) {
            tokens = most_likely(gather(team, task));
            // those of probability 0 are not in the list
            std::size_t count = tokens.size();
            for (int i = 0; i < row.usable && count < static_cast<std::size_t>(top); ++i)
                if (row.logits[i] == -kInfinity) list_[count++] = {-kInfinity, row.first_id + i};
            tokens = most_likely(exchange(ranks, list_.get(), count, all_.get()));
        }

        // Of each rank the sum of its exponentials, and the chosen token's logit where it has that one.
        struct Own {
            double sum;
            double logit;
        } own = {0, 0};
        for (int block = 0; defined && block < whole.blocks; ++block) own.sum += sums_[block];
        if (token >= row.first_id && token < row.first_id + row.width) own.logit = row.logits[token - row.first_id];
        if (ranks) {
            Own sum = {0, 0};
            for (const auto part : ranks->all_gather(as_bytes_of(&own, 1))) {
                sum.sum += as_things<Own>(part)[0].sum;
                sum.logit += as_things<Own>(part)[0].logit;
            }
            own = sum;
        }
        const double total = std::log(own.sum);
        const auto of_logit = [&](double logit) {
            return defined && bounded(all) ? static_cast<float>(logit - largest - total) : std::numeric_limits<float>::quiet_NaN();
        };
        logprob = token >= 0 ? of_logit(own.logit) : std::numeric_limits<float>::quiet_NaN();
        for (std::size_t i = 0; i < static_cast<std::size_t>(top); ++i) {
            const bool known = i < tokens.size();
            top_tokens[i] = known ? tokens[i].id : -1;
            top_logprobs[i] = known ? of_logit(tokens[i].score) : std::numeric_limits<float>::quiet_NaN();
        }
    }
    team.barrier();
}

} // namespace anthesis
