// Attention over the block cache.

#include "instruction.hpp"

#include <algorithm>

namespace anthesis {
namespace {

class Attend final : public Instruction {
public:
    Attend(AttendSpec spec, int threads) : spec_(std::move(spec)), store_tasks_(threads), tasks_(threads) {
        layer_ = {spec_.cache->layout,
                  spec_.cache->data.get(),
                  spec_.queries_per_kv_head,
                  spec_.first_head,
                  spec_.first_kv_head,
                  spec_.heads,
                  spec_.scale,
                  spec_.slopes.empty() ? nullptr : spec_.slopes.data(),
                  spec_.window,
                  spec_.rotates};
    }

    Needs needs(const Kernels& kernels, int, int, int) const override {
        return {0, up_to_line(kernels.attend_scratch_floats(layer_) * sizeof(float)), 0};
    }

    void begin(int thread) noexcept override {
        store_tasks_.reset(thread);
        tasks_.reset(thread);
    }

    void run(const Step& step, const Team& team) override {
        const StepInputs& in = step.in;
        const int heads = layer_.layout.kv_heads;
        bool single_rows = true; // of each sequence: a row then needs no key that another task stores
        for (int i = 0; i < in.num_segments; ++i) single_rows = single_rows && in.segments[3 * i + 1] <= 1;
        // Rows of a prompt are cut into runs; rows of one run share the reading of keys.
        const int run_rows = single_rows ? 1 : kRunRows;
        int tasks = 0;
        for (int i = 0; i < in.num_segments; ++i) tasks += (in.segments[3 * i + 1] + run_rows - 1) / run_rows * heads;
        if (!single_rows) {
            store_tasks_.run(team, tasks, 1, [&](int task, int) { step.kernels.attend_store(job(step, team, task, run_rows)); });
            team.barrier();
        }
        tasks_.run(team, tasks, 1, [&](int task, int) {
            const AttendRows rows = job(step, team, task, run_rows);
            if (single_rows) step.kernels.attend_store(rows);
            step.kernels.attend(rows);
        });
    }

private:
    static constexpr int kRunRows = 16;

    AttendRows job(const Step& step, const Team& team, int task, int run_rows) const {
        const StepInputs& in = step.in;
        const int heads = layer_.layout.kv_heads;
        int segment = 0, run = task / heads;
        for (;; ++segment) {
            const int runs = (in.segments[3 * segment + 1] + run_rows - 1) / run_rows;
            if (run < runs) break;
            run -= runs;
        }
        const int first = in.segments[3 * segment] + run * run_rows;
        const int rows = std::min(run_rows, in.segments[3 * segment + 1] - run * run_rows);
        return {&layer_,
                step.at(spec_.q),
                step.at(spec_.k),
                step.at(spec_.v),
                static_cast<std::size_t>(spec_.q.width),
                static_cast<std::size_t>(spec_.k.width),
                spec_.rotates ? step.at(spec_.angles) : nullptr,
                step.at(spec_.out),
                static_cast<std::size_t>(spec_.out.width),
                in.positions,
                in.block_table + static_cast<std::size_t>(in.slots[first]) * in.table_width,
                first,
                rows,
                task % heads,
                reinterpret_cast<float*>(step.own[team.thread])};
    }

    AttendSpec spec_;
    AttendLayer layer_;
    Tasks store_tasks_, tasks_;
};

} // namespace

std::unique_ptr<Instruction> make_instruction(AttendSpec spec, const Kernels&, int threads) {
    return std::make_unique<Attend>(std::move(spec), threads);
}

} // namespace anthesis
