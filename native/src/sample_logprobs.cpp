#include <algorithm>

#include "sample_task.hpp"

namespace anthesis {

void Sampler::logprobs(const Team& team, const float* logits, int vocab, int usable, std::int32_t token, int top,
                       float& logprob, std::int32_t* top_tokens, float* top_logprobs) noexcept {
    const SampleRow row = {logits, vocab, usable, 1, 1, 0, 1, 0, 0, nullptr, 0};
    const SampleRow whole_row = {logits, vocab, vocab, 1, 1, 0, 1, 0, 0, nullptr, 0};
    Task task{row};
    const Task whole{whole_row};
    scan(team, task);
    const auto [first_id, last_id] = team.share(vocab - usable);
    for (int id = usable + first_id; id < usable + last_id; ++id)
        extend(parts_[team.thread].padding, {order_of(logits[id]), order_of(logits[id])});
    team.barrier();
    const bool defined = merge(team, task);
    Extremes all = task.logits;
    for (int thread = 0; thread < team.size(); ++thread) extend(all, parts_[thread].padding);
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
        double total = 0;
        for (int block = 0; defined && block < whole.blocks; ++block) total += sums_[block];
        total = std::log(total);
        const auto own = [&](std::int32_t id) {
            const bool known = defined && id >= 0 && bounded(all);
            return known ? static_cast<float>(logits[id] - largest - total) : std::numeric_limits<float>::quiet_NaN();
        };
        logprob = own(token);
        int found = 0;
        if (defined && top > 0) {
            Scored *first = list_.get(), *last = gather(team, task);
            Scored* end = first + std::min<std::ptrdiff_t>(top, last - first);
            std::partial_sort(first, end, last, [](const Scored& a, const Scored& b) { return a.before(b); });
            for (; found < end - first; ++found) top_tokens[found] = first[found].id;
            // those of probability 0 are not in the list
            for (int id = 0; id < usable && found < top; ++id)
                if (logits[id] == -kInfinity) top_tokens[found++] = id;
        }
        std::fill(top_tokens + found, top_tokens + top, -1);
        for (int i = 0; i < top; ++i) top_logprobs[i] = own(top_tokens[i]);
    }
    team.barrier();
}

} // namespace anthesis
