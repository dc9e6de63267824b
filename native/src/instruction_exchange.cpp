// Instructions that bring rows from one rank, or one stage, to another.

#include "instruction.hpp"

#include <cstring>

namespace anthesis {
namespace {

class AllReduce final : public Instruction {
public:
    explicit AllReduce(AllReduceSpec spec) : spec_(spec) {}

    void run(const Step& step, const Team& team) override {
        const auto rows = static_cast<std::size_t>(step.rows_of(spec_.x));
        step.ranks->all_reduce(team, step.at(spec_.x), step.at(spec_.out), rows * static_cast<std::size_t>(spec_.x.width));
    }

private:
    AllReduceSpec spec_;
};

class Gather final : public Instruction {
public:
    explicit Gather(GatherSpec spec) : spec_(spec) {}

    void run(const Step& step, const Team& team) override {
        if (team.thread != 0) return;
        const auto rows = static_cast<std::size_t>(step.rows_of(spec_.x)), all = static_cast<std::size_t>(spec_.width);
        const auto& parts = step.ranks->all_gather(as_bytes_of(step.at(spec_.x), rows * static_cast<std::size_t>(spec_.x.width)));
        std::size_t at = 0;
        for (const auto part : parts) {
            const auto columns = as_things<float>(part);
            const std::size_t width = std::min(columns.size() / rows, all - at); // more only where the exchange has failed
            for (std::size_t row = 0; row < rows; ++row)
                std::memcpy(step.out.logits + row * all + at, columns.data() + row * width, width * sizeof(float));
            at += width;
        }
    }

private:
    GatherSpec spec_;
};

class Hidden final : public Instruction {
public:
    explicit Hidden(HiddenSpec spec) : spec_(spec) {}

    void run(const Step& step, const Team& team) override {
        const auto width = static_cast<std::size_t>(spec_.place.width);
        const auto [first, last] = team.share(step.rows_of(spec_.place));
        const std::size_t at = static_cast<std::size_t>(first) * width, nbytes = static_cast<std::size_t>(last - first) * width * sizeof(float);
        if (spec_.way == HiddenSpec::Way::in)
            std::memcpy(step.at(spec_.place) + at, step.in.hidden + at, nbytes);
        else
            std::memcpy(step.out.hidden + at, step.at(spec_.place) + at, nbytes);
    }

private:
    HiddenSpec spec_;
};

} // namespace

std::unique_ptr<Instruction> make_instruction(AllReduceSpec spec, const Kernels&, int) { return std::make_unique<AllReduce>(spec); }

std::unique_ptr<Instruction> make_instruction(GatherSpec spec, const Kernels&, int) { return std::make_unique<Gather>(spec); }

std::unique_ptr<Instruction> make_instruction(HiddenSpec spec, const Kernels&, int) { return std::make_unique<Hidden>(spec); }

} // namespace anthesis
