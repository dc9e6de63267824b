#include "sample.hpp"

#include <algorithm>
#include <functional>

#include "sample_task.hpp"

namespace anthesis {
namespace {

// The least mass, a whole number, that is enough for top-p.
std::uint64_t needed_mass(float top_p, std::uint64_t total) {
    return static_cast<std::uint64_t>(std::max(0.0, std::ceil(top_p * static_cast<double>(total))));
}

} // namespace

void Sampler::reserve(int vocab, int threads) {
    if (vocab <= vocab_ && threads <= threads_) return;
    vocab = std::max(vocab, vocab_);
    threads = std::max(threads, threads_);
    const auto ids = static_cast<std::size_t>(vocab), members = static_cast<std::size_t>(threads);
    const auto blocks = static_cast<std::size_t>(blocks_of(vocab));
    vocab_ = threads_ = 0; // should one of these throw, nothing counts as reserved
    parts_ = std::make_unique<Part[]>(members);
    largest_ = std::make_unique_for_overwrite<float[]>(blocks);
    groups_ = std::make_unique_for_overwrite<float[]>(members * blocks);
    sums_ = std::make_unique_for_overwrite<double[]>(blocks);
    mass_ = std::make_unique_for_overwrite<std::uint64_t[]>(members * kMassRanges);
    seen_ = std::make_unique_for_overwrite<Scored[]>(ids);
    list_ = std::make_unique_for_overwrite<Scored[]>(ids);
    vocab_ = vocab;
    threads_ = threads;
}

void Sampler::choose(const Team& team, const SampleRow& row, std::int32_t& token) noexcept {
    Task task{row};
    scan(team, task);
    team.barrier();
    if (!merge(team, task)) {
        if (team.thread == 0) token = -1;
    } else if (task.greedy) {
        if (team.thread == 0) token = task.best.id;
    } else if (0 < row.top_k && row.top_k < row.usable) {
        const float low = lower_limit(team, task, row.top_k);
        const double low_score = task.score(low);
        list_tokens(team, task, low, kInfinity, [&](double score) { return score >= low_score; });
        team.barrier();
        if (team.thread == 0) token = choose_of_top_k(team, task);
    } else {
        Kept kept;
        if (row.top_p < 1) kept = top_p(team, task);
        kept.apply_min_p(row.min_p, task.best.score);
        draw(team, task, kept);
        team.barrier();
        if (team.thread == 0) {
            Scored drawn = parts_[0].drawn;
            for (int thread = 1; thread < team.size(); ++thread)
                if (parts_[thread].drawn.before(drawn)) drawn = parts_[thread].drawn;
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
                const Scored token = {task.penalised(logits[i]), block * kBlockIds + i};
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
    const Scored token = {task.score(largest), largest_block * kBlockIds + i};
    if (i < kBlockIds && token.before(part.best)) part.best = token;
}

// Puts what the threads found together, on each of them; whether there is a most likely token.
bool Sampler::merge(const Team& team, Task& task) const {
    task.best = parts_[0].best;
    for (int thread = 0; thread < team.size(); ++thread) {
        extend(task.logits, parts_[thread].logits);
        if (parts_[thread].best.before(task.best)) task.best = parts_[thread].best;
    }
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

// Moves what the threads listed together; returns its end.
Sampler::Scored* Sampler::gather(const Team& team, const Task& task) {
    Scored* end = list_.get();
    for (int thread = 0; thread < team.size(); ++thread) {
        const Scored* from = list_.get() + Team{team.pool, thread}.share(task.blocks).first * kBlockIds;
        end = std::copy(from, from + parts_[thread].listed, end);
    }
    return end;
}

// By thread 0, of listed tokens among which are the k most likely: so few as a rule that sharing them would only cost.
std::int32_t Sampler::choose_of_top_k(const Team& team, const Task& task) {
    const auto likelier = [](const Scored& a, const Scored& b) { return a.score > b.score; };
    Scored *first = list_.get(), *last = gather(team, task);
    if (task.row.top_k < last - first) {
        std::nth_element(first, first + task.row.top_k - 1, last, likelier);
        const double limit = first[task.row.top_k - 1].score;
        last = std::partition(first, last, [&](const Scored& token) { return token.score >= limit; });
    }
    Kept kept;
    if (task.row.top_p < 1) {
        std::uint64_t total = 0;
        for (const Scored* token = first; token < last; ++token) total += token_mass(task.best.score - token->score);
        kept = smallest_set(first, last, task.best.score, 0, needed_mass(task.row.top_p, total));
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

Sampler::Kept Sampler::top_p(const Team& team, const Task& task) {
    const auto [first_block, last_block] = team.share(task.blocks);
    Part& part = parts_[team.thread];
    const double largest = task.best.score;
    double span = std::min(kNoMass, largest - task.score(of_order(task.logits.smallest)));
    if (!(span > 0)) span = 1;
    const Ranges ranges = {task.temperature, largest, span, (kMassRanges - 1) / span};
    std::uint64_t* mass_of_range = mass_.get() + static_cast<std::size_t>(team.thread) * kMassRanges;
    std::fill(mass_of_range, mass_of_range + kMassRanges, 0);
    std::uint64_t mass = 0;
    const auto add = [&](int range, std::uint64_t more) {
        mass_of_range[range] += more;
        mass += more;
    };
    const Scored* seen = seen_.get() + first_block * kBlockIds;
    for (int i = 0; i < part.seen; ++i) add(ranges.of(seen[i].score), token_mass(largest - seen[i].score));
    float copy[kBlockIds];
    BlockMasses block_masses;
    for (int block = first_block; block < last_block; ++block) {
        if (largest - task.score(largest_[block]) >= kNoMass) continue;
        kernels_->masses(load(task, block, copy), ranges, block_masses);
        for (int i = 0; i < kBlockIds; ++i) add(block_masses.range[i], block_masses.mass[i]);
    }
    part.mass = mass;
    team.barrier();

    std::uint64_t total = 0, above = 0;
    for (int thread = 0; thread < team.size(); ++thread) total += parts_[thread].mass;
    const std::uint64_t needed = needed_mass(task.row.top_p, total);
    int last = 0;
    for (; last < kMassRanges - 1; ++last) {
        std::uint64_t here = 0;
        for (int thread = 0; thread < team.size(); ++thread)
            here += mass_[static_cast<std::size_t>(thread) * kMassRanges + static_cast<std::size_t>(last)];
        if (above + here >= needed) break;
        above += here;
    }
    // Scores fall from range to range as logits do, so a range is a pair of limits for logits too.
    const auto lowest = [&](int range) {
        return task.lowest_logit([&](float logit) { return ranges.of(task.score(logit)) <= range; });
    };
    list_tokens(team, task, lowest(last), last == 0 ? kInfinity : lowest(last - 1),
                [&](double score) { return ranges.of(score) == last; });
    team.barrier();
    if (team.thread == 0) border_ = smallest_set(list_.get(), gather(team, task), largest, above, needed).last;
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
        const std::uint64_t word = task.key + (static_cast<std::uint64_t>(block) * kBlockIds + 1) * kGolden;
        if (kernels_->reach(word, rest_limit(noise)) == 0) continue;
        const float* logits = load(task, block, copy);
        int count = 0;
        for (int i = 0; i < kBlockIds; ++i)
            if (logits[i] >= low) tokens[count++] = {task.score(logits[i]), block * kBlockIds + i};
        draw(task, kept, tokens, tokens + count, drawn);
    }
    part.drawn = drawn;
}

} // namespace anthesis
