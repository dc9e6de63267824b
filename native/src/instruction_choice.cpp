// Instructions that choose the next token.

#include "instruction.hpp"

#include <algorithm>
#include <cmath>

#include "sample.hpp"

namespace anthesis {
namespace {

class Argmax final : public Instruction {
public:
    explicit Argmax(ArgmaxSpec spec) : spec_(spec) {}

    Needs needs(const Kernels&, const StepSize& size, int threads) const override {
        return {0, 0, static_cast<std::size_t>(size.logit_rows) * threads * sizeof(Candidate) / sizeof(float)};
    }

    void run(const Step& step, const Team& team) override {
        if (!spec_.of_candidates || !leaves_candidates(step.in.logit_rows)) {
            look_at_share(step, team);
            team.barrier();
        }
        if (spec_.over_ranks) {
            if (team.thread == 0) choose_over_ranks(step, team);
            return;
        }
        const auto [from, to] = team.share(step.in.logit_rows);
        for (int row = from; row < to; ++row) step.out.token[row] = token_of(best_of_threads(step, team, row));
    }

private:
    void look_at_share(const Step& step, const Team& team) const {
        const auto [first, last] = team.share(spec_.usable);
        for (int row = 0; row < step.in.logit_rows; ++row) {
            const float* logits = step.at(spec_.logits) + static_cast<std::size_t>(row) * spec_.logits.width;
            Candidate best;
            if (first < last) {
                best.token = first + step.kernels.argmax(logits + first, last - first);
                best.logit = logits[best.token];
            }
            candidates_of(step, team.thread)[row] = best;
        }
    }

    static Candidate best_of_threads(const Step& step, const Team& team, int row) {
        Candidate best;
        for (int thread = 0; thread < team.size(); ++thread)
            if (const Candidate found = candidates_of(step, thread)[row]; found.is_better_than(best)) best = found;
        return best;
    }

    static std::int32_t token_of(const Candidate& best) { return best.token >= 0 && std::isfinite(best.logit) ? best.token : -1; }

    // One candidate for each row goes to the other ranks, and never a row of logits.
    void choose_over_ranks(const Step& step, const Team& team) const {
        Candidate* own = candidates_of(step, 0);
        for (int row = 0; row < step.in.logit_rows; ++row) {
            own[row] = best_of_threads(step, team, row);
            if (own[row].token >= 0) own[row].token += spec_.first_id;
        }
        const auto& parts = step.ranks->all_gather(as_bytes_of(own, static_cast<std::size_t>(step.in.logit_rows)));
        for (int row = 0; row < step.in.logit_rows; ++row) {
            Candidate best;
            for (const auto part : parts)
                if (const Candidate found = as_things<Candidate>(part)[static_cast<std::size_t>(row)]; found.is_better_than(best)) best = found;
            step.out.token[row] = token_of(best);
        }
    }

    ArgmaxSpec spec_;
};

class Sample final : public Instruction {
public:
    explicit Sample(SampleSpec spec) : spec_(spec) {}

    void reserve(int threads) override {
        // Where an exchange fails, this rank's part stands there for every rank.
        const int listed = std::max(spec_.vocab, spec_.ranks * spec_.logits.width);
        sampler_.reserve(spec_.logits.width, threads, spec_.ranks > 1 ? static_cast<std::size_t>(listed) : 0);
    }

    void run(const Step& step, const Team& team) override {
        const StepInputs& in = step.in;
        const std::size_t width = spec_.logits.width, seen_bytes = (static_cast<std::size_t>(spec_.vocab) + 7) / 8;
        Communicator* ranks = spec_.ranks > 1 ? step.ranks : nullptr;
        for (int i = 0; i < in.logit_rows; ++i) {
            const auto at = static_cast<std::size_t>(i);
            const SampleRow row{.logits = step.at(spec_.logits) + at * width,
                                .width = spec_.logits.width,
                                .usable = spec_.usable,
                                .temperature = in.temperature[i],
                                .top_p = in.top_p[i],
                                .min_p = in.min_p[i],
                                .repetition_penalty = in.repetition_penalty[i],
                                .top_k = in.top_k[i],
                                .seed = in.seed[i],
                                .seen = in.seen + at * seen_bytes,
                                .position = in.positions[in.logit_row_numbers[i]],
                                .first_id = spec_.first_id,
                                .all_usable = spec_.all_usable,
                                .vocab = spec_.vocab};
            sampler_.choose(team, row, step.out.token[i], ranks);
            if (spec_.top < 0) continue;
            const std::size_t of_row = at * static_cast<std::size_t>(spec_.top);
            sampler_.logprobs(team, row, step.out.token[i], spec_.top, step.out.logprob[i], step.out.top_tokens + of_row,
                              step.out.top_logprobs + of_row, ranks);
        }
    }

private:
    SampleSpec spec_;
    Sampler sampler_;
};

} // namespace

std::unique_ptr<Instruction> make_instruction(ArgmaxSpec spec, const Kernels&, int) {
    return std::make_unique<Argmax>(std::move(spec));
}

std::unique_ptr<Instruction> make_instruction(SampleSpec spec, const Kernels&, int) {
    return std::make_unique<Sample>(std::move(spec));
}

} // namespace anthesis
