// Instructions that choose the next token.

#include "instruction.hpp"

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
        const auto [from, to] = team.share(step.in.logit_rows);
        for (int row = from; row < to; ++row) {
            Candidate best;
            for (int thread = 0; thread < team.size(); ++thread)
                if (const Candidate found = candidates_of(step, thread)[row]; found.is_better_than(best)) best = found;
            step.out.token[row] = best.token >= 0 && std::isfinite(best.logit) ? best.token : -1;
        }
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

    ArgmaxSpec spec_;
};

class Sample final : public Instruction {
public:
    explicit Sample(SampleSpec spec) : spec_(spec) {}

    void reserve(int threads) override { sampler_.reserve(spec_.logits.width, threads); }

    void run(const Step& step, const Team& team) override {
        const StepInputs& in = step.in;
        const int vocab = spec_.logits.width;
        for (int i = 0; i < in.logit_rows; ++i) {
            const float* logits = step.at(spec_.logits) + static_cast<std::size_t>(i) * vocab;
            const SampleRow row{logits,
                                vocab,
                                spec_.usable,
                                in.temperature[i],
                                in.top_p[i],
                                in.min_p[i],
                                in.repetition_penalty[i],
                                in.top_k[i],
                                in.seed[i],
                                in.seen + static_cast<std::size_t>(i) * ((vocab + 7) / 8),
                                in.positions[in.logit_row_numbers[i]]};
            sampler_.choose(team, row, step.out.token[i]);
            if (spec_.top < 0) continue;
            const std::size_t at = static_cast<std::size_t>(i) * spec_.top;
            sampler_.logprobs(team, logits, vocab, spec_.usable, step.out.token[i], spec_.top, step.out.logprob[i],
                              step.out.top_tokens + at, step.out.top_logprobs + at);
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
