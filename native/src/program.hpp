#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "instruction.hpp"
#include "pages.hpp"

namespace anthesis {

// A flat list of instructions over one arena. `run` makes a step of it on a pool's threads.
class Program {
public:
    // `floats_per_row`, `floats_per_logit_row`: of the arena; `ranks`: among which the model is split, or null.
    Program(std::shared_ptr<Pool> pool, std::size_t floats_per_row, std::size_t floats_per_logit_row,
            std::shared_ptr<Communicator> ranks = nullptr);

    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    template <class Spec> void add(Spec spec) {
        instructions_.push_back(make_instruction(std::move(spec), kernels_, pool_->size()));
    }

    // One step; callers of several threads wait for each other. Throws std::bad_alloc, std::runtime_error in a forked process,
    // and what `Communicator::check` throws.
    void run(const StepInputs& in, const StepOutputs& out);

    // From now on steps take the time of each instruction, or no longer do.
    void measure(bool on);
    // Seconds that each instruction took in the steps since `measure(true)`, waiting for all threads included.
    const std::vector<double>& seconds() const { return seconds_; }

private:
    using Clock = std::chrono::steady_clock;

    void reserve(const StepInputs& in);
    void run_measured(const Step& step, const Team& team);

    std::shared_ptr<Pool> pool_;
    std::mutex turn_; // whose step it is
    const Kernels& kernels_;
    std::size_t floats_per_row_, floats_per_logit_row_;
    std::shared_ptr<Communicator> ranks_;
    std::vector<std::unique_ptr<Instruction>> instructions_;
    bool measures_ = false;
    std::vector<double> seconds_;
    StepSize reserved_ = {};
    std::unique_ptr<Pages> memory_;
    float *token_rows_ = nullptr, *logit_rows_ = nullptr, *partial_ = nullptr;
    std::byte* packed_ = nullptr;
    std::vector<std::byte*> own_;
};

} // namespace anthesis
