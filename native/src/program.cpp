#include "program.hpp"

#include <algorithm>
#include <utility>

namespace anthesis {

void Needs::cover(const Needs& other) {
    packed_bytes = std::max(packed_bytes, other.packed_bytes);
    own_bytes = std::max(own_bytes, other.own_bytes);
    partial_floats = std::max(partial_floats, other.partial_floats);
}

Program::Program(std::shared_ptr<Pool> pool, std::size_t floats_per_row, std::size_t floats_per_logit_row,
                 std::shared_ptr<Communicator> ranks)
    : pool_(std::move(pool)), kernels_(chosen_kernels()), floats_per_row_(floats_per_row),
      floats_per_logit_row_(floats_per_logit_row), ranks_(std::move(ranks)), own_(static_cast<std::size_t>(pool_->size())) {}

void Program::reserve(const StepInputs& in) {
    if (in.rows <= reserved_.rows && in.logit_rows <= reserved_.logit_rows && in.table_width <= reserved_.blocks) return;
    const StepSize size{std::max(in.rows, reserved_.rows), std::max(in.logit_rows, reserved_.logit_rows),
                        std::max(in.table_width, reserved_.blocks)};
    Needs needs;
    for (const auto& instruction : instructions_) instruction->reserve(pool_->size());
    for (const auto& instruction : instructions_) needs.cover(instruction->needs(kernels_, size, pool_->size()));
    // Kernels may read up to 16 floats from the start of a shorter row.
    const std::size_t token_bytes = up_to_line((floats_per_row_ * size.rows + 16) * sizeof(float));
    const std::size_t logit_bytes = up_to_line((floats_per_logit_row_ * size.logit_rows + 16) * sizeof(float));
    const std::size_t packed_bytes = up_to_line(needs.packed_bytes), own_bytes = up_to_line(needs.own_bytes);
    const std::size_t partial_bytes = up_to_line(needs.partial_floats * sizeof(float));
    reserved_ = {};
    memory_.reset();
    memory_ = std::make_unique<Pages>(token_bytes + logit_bytes + packed_bytes + partial_bytes + own_.size() * own_bytes);
    auto* at = static_cast<std::byte*>(memory_->data());
    const auto take = [&](std::size_t nbytes) { return std::exchange(at, at + nbytes); };
    token_rows_ = reinterpret_cast<float*>(take(token_bytes));
    logit_rows_ = reinterpret_cast<float*>(take(logit_bytes));
    packed_ = take(packed_bytes);
    partial_ = reinterpret_cast<float*>(take(partial_bytes));
    for (std::byte*& own : own_) own = take(own_bytes);
    reserved_ = size;
}

void Program::run(const StepInputs& in, const StepOutputs& out) {
    const std::lock_guard turn(turn_);
    reserve(in);
    const Step step{kernels_, in, token_rows_, logit_rows_, packed_, own_.data(), partial_, out, ranks_.get()};
    pool_->run([&](int thread) {
        const Team team{*pool_, thread};
        for (const auto& instruction : instructions_) instruction->begin(thread);
        team.barrier();
        if (measures_ && thread == 0) return run_measured(step, team);
        for (const auto& instruction : instructions_) {
            instruction->run(step, team);
            team.barrier();
        }
    });
    if (ranks_) ranks_->check();
}

void Program::run_measured(const Step& step, const Team& team) {
    Clock::time_point before = Clock::now();
    for (std::size_t i = 0; i < instructions_.size(); ++i) {
        instructions_[i]->run(step, team);
        team.barrier();
        const Clock::time_point now = Clock::now();
        seconds_[i] += std::chrono::duration<double>(now - before).count();
        before = now;
    }
}

void Program::measure(bool on) {
    measures_ = on;
    if (on) seconds_.assign(instructions_.size(), 0.0);
}

} // namespace anthesis
