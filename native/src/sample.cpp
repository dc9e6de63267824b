#include "sample.hpp"

#include <algorithm>
#include <functional>
#include <numeric>

#include "sample_task.hpp"

namespace anthesis {
namespace {

// The least mass, a whole number, that is enough for top-p.
std::uint64_t needed_mass(float top_p, std::uint64_t total) {
    return static_cast<std::uint64_t>(std::max(0.0, std::ceil(top_p * static_cast<double>(total))));
}

} // namespace

void Sampler::reserve(int width, int threads, std::size_t listed) {
    if (width <= width_ && threads <= threads_ && listed <= listed_) return;
    width = std::max(width, width_);
    threads = std::max(threads, threads_);
    listed = std::max(listed, listed_);
    const auto ids = static_cast<std::size_t>(width), members = static_cast<std::size_t>(threads);
    const auto blocks = static_cast<std::size_t>(blocks_of(width));
    width_ = threads_ = 0; // should one of these throw, nothing counts as reserved
    parts_ = std::make_unique<Part[]>(members);
    largest_ = std::make_unique_for_overwrite<float[]>(blocks);
    groups_ = std::make_unique_for_overwrite<float[]>(members * blocks);
    sums_ = std::make_unique_for_overwrite<double[]>(blocks);
    mass_ = std::make_unique_for_overwrite<std::uint64_t[]>(members * kMassRanges);
    seen_ = std::make_unique_for_overwrite<Scored[]>(ids);
    list_ = std::make_unique_for_overwrite<Scored[]>(ids);
    all_ = std::make_unique_for_overwrite<Scored[]>(listed);
    width_ = width;
    threads_ = threads;
    listed_ = listed;
}

void Sampler::choose(const Team& team, const SampleRow& row, std::int32_t& token, Communicator* ranks) noexcept {
    Task task{row};
    scan(team, task);
    team.barrier();
    if (!merge(team, task, ranks)) {
        if (team.thread == 0) token = -1;
    } else if (task.greedy) {
        if (team.thread == 0) token = task.best.id;
    } else if (0 < row.top_k && row.top_k < row.all_usable) {
        const float low = lower_limit(team, task, row.top_k);
        const double low_score = task.score(low);
        list_tokens(team, task, low, kInfinity, [&](double score) { return score >= low_score; });
        team.barrier();
        if (team.thread == 0) token = choose_of_top_k(team, task, ranks);
    } else {
        Kept kept;
        if (row.top_p < 1) kept = top_p(team, task, ranks);
        kept.apply_min_p(row.min_p, task.best.score);
        draw(team, task, kept);
        team.barrier();
        if (team.thread == 0) {
            Scored drawn = parts_[0].drawn;
            for (int thread = 1; thread < team.size(); ++thread)
                if (parts_[thread].drawn.before(drawn)) drawn = parts_[thread].drawn;
            for (const Scored& other : exchange(ranks, &drawn, 1, all_.get()))
                if (other.before(drawn)) drawn = other;
            token = drawn.id;
        }
    }
    team.barrier();
}

// The block's 64 logits: those seen and those past the usable ones as -inf.
const float* Sampler::load(const Task& task, int block, float* copy) const {
    const float* logits = task.row.logits + block * kBlockIds;
    const int ids = task.ids_in(block);
    std::uint64_t seen = task.seen(block);
    if (ids == kBlockIds && seen == 0) return logits;
    std::copy(logits, logits + ids, copy);
    std::fill(copy + ids, copy + kBlockIds, -kInfinity);
    for (; seen != 0; seen &= seen - 1) copy[std::countr_zero(seen)] = -kInfinity;
    return copy;
}

void Sampler::scan(const Team& team, const Task& task) {
    const auto [first_block, last_block] = team.share(task.blocks);
    Part& part = parts_[team.thread];
    part.logits = part.padding = kNone;
    part.seen = 0;
    part.best = {-std::numeric_limits<double>::infinity(), -1};
    Scored* seen = seen_.get() + first_block * kBlockIds;
    float copy[kBlockIds], largest = -kInfinity;
    int largest_block = -1;
    for (int block = first_block; block < last_block; ++block) {
        const float* logits = task.row.logits + block * kBlockIds;
        const int ids = task.ids_in(block);
        const float* whole = logits;
        if (ids < kBlockIds) { // the same again makes no difference to the extremes
            std::copy(logits, logits + ids, copy);
            std::fill(copy + ids, copy + kBlockIds, logits[0]);
            whole = copy;
        }
        Extremes found = kernels_->extremes(whole);
        extend(part.logits, found);
        if (std::uint64_t word = task.seen(block); word != 0) {
            for (; word != 0; word &= word - 1) {
                const int i = std::countr_zero(word);
                const Scored token = {task.penalised(logits[i]), task.id(block, i)};
                if (token.before(part.best)) part.best = token;
                seen[part.seen++] = token;
            }
            found = kernels_->extremes(load(task, block, copy));
        }
        largest_[block] = of_order(found.largest);
        if (largest_[block] > largest) {
            largest = largest_[block];
            largest_block = block;
        }
    }
    if (largest_block < 0) return;
    const float* logits = load(task, largest_block, copy);
    const int i = static_cast<int>(std::find(logits, logits + kBlockIds, largest) - logits);
    const Scored token = {task.score(largest), task.id(largest_block, i)};
    if (i < kBlockIds && token.before(part.best)) part.best = token;
}

// Puts what the threads of all ranks found together, on each of them; whether there is a most likely token.
bool Sampler::merge(const Team& team, Task& task, Communicator* ranks) {
    if (team.thread == 0) {
        Merged own = {kNone, kNone, parts_[0].best};
        for (int thread = 0; thread < team.size(); ++thread) {
            extend(own.logits, parts_[thread].logits);
            extend(own.all, parts_[thread].padding);
            if (parts_[thread].best.before(own.best)) own.best = parts_[thread].best;
        }
        extend(own.all, own.logits);
        merged_ = own;
        if (ranks)
            for (const auto part : ranks->all_gather(as_bytes_of(&own, 1))) {
                const Merged other = as_things<Merged>(part)[0];
                extend(merged_.logits, other.logits);
                extend(merged_.all, other.all);
                // the part of a rank may have nothing that can be chosen
                if (other.best.id >= 0 && (merged_.best.id < 0 || other.best.before(merged_.best))) merged_.best = other.best;
            }
    }
    team.barrier();
    task.logits = merged_.logits;
    task.best = merged_.best;
    return bounded(task.logits) && task.logits.largest > order_of(-kInfinity);
}

// A logit that at least `count` of those not in `seen_` reach, and few more: the `count`-th of the largest logits of
// four times as many groups of blocks. -inf where there are not enough blocks.
float Sampler::lower_limit(const Team& team, const Task& task, int count) const {
    if (count > task.blocks) return -kInfinity;
    const int groups = static_cast<int>(std::min<std::int64_t>(task.blocks, std::int64_t{4} * count));
    float* of_group = groups_.get() + static_cast<std::size_t>(team.thread) * static_cast<std::size_t>(task.blocks);
    std::copy(largest_.get(), largest_.get() + groups, of_group);
    for (int first = groups; first < task.blocks; first += groups) {
        const int here = std::min(groups, task.blocks - first);
        for (int i = 0; i < here; ++i) of_group[i] = std::max(of_group[i], largest_[first + i]);
    }
    std::nth_element(of_group, of_group + count - 1, of_group + groups, std::greater<>());
    return of_group[count - 1];
}

// Moves what the threads listed together.
std::span<Sampler::Scored> Sampler::gather(const Team& team, const Task& task) {
    Scored* end = list_.get();
    for (int thread = 0; thread < team.size(); ++thread) {
        const Scored* from = list_.get() + Team{team.pool, thread}.share(task.blocks).first * kBlockIds;
        end = std::copy(from, from + parts_[thread].listed, end);
    }
    return {list_.get(), end};
}

// By thread 0, of listed tokens among which are the k most likely: so few as a rule that sharing them would only cost.
std::int32_t Sampler::choose_of_top_k(const Team& team, const Task& task, Communicator* ranks) {
    const auto likelier = [](const Scored& a, const Scored& b) { return a.score > b.score; };
    // The k most likely, and those that are as likely as the k-th.
    const auto most_likely = [&](std::span<Scored> tokens) {
        if (static_cast<std::size_t>(task.row.top_k) >= tokens.size()) return tokens;
        std::nth_element(tokens.begin(), tokens.begin() + task.row.top_k - 1, tokens.end(), likelier);
        const double limit = tokens[static_cast<std::size_t>(task.row.top_k - 1)].score;
        const auto end = std::partition(tokens.begin(), tokens.end(), [&](const Scored& token) { return token.score >= limit; });
        return tokens.first(static_cast<std::size_t>(end - tokens.begin()));
    };
    std::span<Scored> tokens = most_likely(gather(team, task));
    if (ranks) tokens = most_likely(exchange(ranks, tokens.data(), tokens.size(), all_.get()));
    const Scored *first = tokens.data(), *last = first + tokens.size();
    Kept kept;
    if (task.row.top_p < 1) {
        std::uint64_t total = 0;
        for (const Scored* token = first; token < last; ++token) total += token_mass(task.best.score - token->score);
        kept = smallest_set(tokens.data(), tokens.data() + tokens.size(), task.best.score, 0, needed_mass(task.row.top_p, total));
    }
    kept.apply_min_p(task.row.min_p, task.best.score);
    Scored drawn = task.first_drawn();
    draw(task, kept, first, last, drawn);
    return drawn.id;
}

// The smallest set, most likely first, of the tokens that has the mass `needed` together with the mass `above` of those
// that are not among them. As quicksort does, but only the side in which the mass is reached is gone into.
Sampler::Kept Sampler::smallest_set(Scored* first, Scored* last, double largest, std::uint64_t above,
                                    std::uint64_t needed) {
    if (first == last) return {}; // an exchange has failed
    while (true) {
        double a = first->score, b = first[(last - first) / 2].score, c = last[-1].score;
        const double pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
        Scored* const equal = std::partition(first, last, [&](const Scored& token) { return token.score > pivot; });
        Scored* const below = std::partition(equal, last, [&](const Scored& token) { return token.score == pivot; });
        std::uint64_t mass = above;
        for (const Scored* token = first; token < equal; ++token) mass += token_mass(largest - token->score);
        if (first < equal && mass >= needed) {
            last = equal;
            continue;
        }
        const std::uint64_t each = token_mass(largest - pivot), count = static_cast<std::uint64_t>(below - equal);
        if (mass + count * each >= needed || below == last) {
            const std::uint64_t enough = mass >= needed ? 1 : each ? (needed - mass + each - 1) / each : count;
            Scored* const end = equal + std::min(enough, count) - 1;
            std::nth_element(equal, end, below, [](const Scored& x, const Scored& y) { return x.id < y.id; });
            return {{pivot, end->id}};
        }
        above = mass + count * each;
        first = below;
    }
}

Sampler::Kept Sampler::top_p(const Team& team, const Task& task, Communicator* ranks) {
    const auto [first_block, last_block] = team.share(task.blocks);
    Part& part = parts_[team.thread];
    const double largest = task.best.score;
    double span = std::min(kNoMass, largest - task.score(of_order(task.logits.smallest)));
    if (!(span > 0)) span = 1;
    const Ranges ranges = {task.temperature, largest, span, (kMassRanges - 1) / span};
    std::uint64_t* mass_of_range = mass_.get() + static_cast<std::size_t>(team.thread) * kMassRanges;
    std::fill(mass_of_range, mass_of_range + kMassRanges, 0);
    const auto add = [&](int range, std::uint64_t more) { mass_of_range[range] += more; };
    const Scored* seen = seen_.get() + first_block * kBlockIds;
    for (int i = 0; i < part.seen; ++i) add(ranges.of(seen[i].score), token_mass(largest - seen[i].score));
    float copy[kBlockIds];
    BlockMasses block_masses;
    for (int block = first_block; block < last_block; ++block) {
        if (largest - task.score(largest_[block]) >= kNoMass) continue;
        kernels_->masses(load(task, block, copy), ranges, block_masses);
        for (int i = 0; i < kBlockIds; ++i) add(block_masses.range[i], block_masses.mass[i]);
    }
    team.barrier();

    if (team.thread == 0) {
        std::uint64_t* all = mass_.get();
        for (int thread = 1; thread < team.size(); ++thread)
            for (int range = 0; range < kMassRanges; ++range) all[range] += all[static_cast<std::size_t>(thread) * kMassRanges + static_cast<std::size_t>(range)];
        if (ranks) {
            const auto& parts = ranks->all_gather(as_bytes_of(all, kMassRanges));
            std::fill(all, all + kMassRanges, 0);
            for (const auto rank : parts) std::transform(all, all + kMassRanges, as_things<std::uint64_t>(rank).begin(), all, std::plus<>());
        }
    }
    team.barrier();
    const std::uint64_t* masses = mass_.get();
    const std::uint64_t needed = needed_mass(task.row.top_p, std::accumulate(masses, masses + kMassRanges, std::uint64_t{0}));
    std::uint64_t above = 0;
    int last = 0;
    for (; last < kMassRanges - 1 && above + masses[last] < needed; ++last) above += masses[last];
    // Scores fall from range to range as logits do, so a range is a pair of limits for logits too.
    const auto lowest = [&](int range) {
        return task.lowest_logit([&](float logit) { return ranges.of(task.score(logit)) <= range; });
    };
    list_tokens(team, task, lowest(last), last == 0 ? kInfinity : lowest(last - 1),
                [&](double score) { return ranges.of(score) == last; });
    team.barrier();
    if (team.thread == 0) {
        const std::span<Scored> own = gather(team, task), tokens = exchange(ranks, own.data(), own.size(), all_.get());
        border_ = smallest_set(tokens.data(), tokens.data() + tokens.size(), largest, above, needed).last;
    }
    team.barrier();
    return {border_};
}

void Sampler::draw(const Task& task, const Kept& kept, const Scored* first, const Scored* last, Scored& drawn) {
    double least = Task::least(drawn);
    for (const Scored* token = first; token < last; ++token) {
        const std::uint64_t hash = token_hash(task.key, token->id);
        if (uniform_rest(hash) > rest_limit(least - token->score) || !kept.has(*token)) continue;
        task.draw(*token, hash, drawn);
        least = Task::least(drawn);
    }
}

void Sampler::draw(const Team& team, const Task& task, const Kept& kept) {
    const auto [first_block, last_block] = team.share(task.blocks);
    Part& part = parts_[team.thread];
    const Scored* seen = seen_.get() + first_block * kBlockIds;
    const float low = task.lowest_logit([&](float logit) { return task.score(logit) >= kept.last.score; });
    Scored drawn = task.first_drawn();
    draw(task, kept, seen, seen + part.seen, drawn);
    float copy[kBlockIds];
    Scored tokens[kBlockIds];
    for (int block = first_block; block < last_block; ++block) {
        const double least = Task::least(drawn);
        const double noise = least - task.score(largest_[block]); // what it takes
        if (largest_[block] < low || noise > kMostNoise) continue;
        const std::uint64_t word = task.key + (static_cast<std::uint64_t>(task.id(block, 0)) + 1) * kGolden;
        if (kernels_->reach(word, rest_limit(noise)) == 0) continue;
        const float* logits = load(task, block, copy);
        int count = 0;
        for (int i = 0; i < kBlockIds; ++i)
            if (logits[i] >= low) tokens[count++] = {task.score(logits[i]), task.id(block, i)};
        draw(task, kept, tokens, tokens + count, drawn);
    }
    part.drawn = drawn;
}

} // namespace anthesis
