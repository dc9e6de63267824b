// Attention over the block cache.

#include "instruction.hpp"

#include <algorithm>
#include <cstdlib>

namespace anthesis {
namespace {
static bool envi(const char* n) { const char* s = getenv(n); return s && *s == '1'; }

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
        const bool single_rows = has_single_rows(step.in);
        const int run_rows = single_rows ? 1 : kRunRows;
        const int tasks = count_tasks(step.in, run_rows);
        if (!single_rows) {
            store_tasks_.run(team, tasks, 1, [&](int task, int) { step.kernels.attend_store(job(step, team, task, run_rows)); });
            team.barrier();
        }
        tasks_.run(team, tasks, 1, [&](int task, int) {
            if (single_rows && task + 1 < tasks && envi("ATT")) fetch_first_block(job(step, team, task + 1, run_rows));
            const AttendRows rows = job(step, team, task, run_rows);
            if (single_rows) step.kernels.attend_store(rows);
            step.kernels.attend(rows);
        });
    }

private:
    // Rows of a prompt are cut into runs; rows of one run share the reading of keys.
    static constexpr int kRunRows = 16;

    // Whether no sequence has more than one row: a row then needs no key that another task stores.
    static bool has_single_rows(const StepInputs& in) {
        for (int i = 0; i < in.num_segments; ++i)
            if (in.segments[3 * i + 1] > 1) return false;
        return true;
    }

    int count_tasks(const StepInputs& in, int run_rows) const {
        int tasks = 0;
        for (int i = 0; i < in.num_segments; ++i)
            tasks += (in.segments[3 * i + 1] + run_rows - 1) / run_rows * layer_.layout.kv_heads;
        return tasks;
    }

    void fetch_first_block(const AttendRows& rows) const noexcept {
        const CacheLayout& layout = layer_.layout;
        const int position = rows.positions[rows.first_row];
        const int block = layer_.window ? std::max(0, position + 1 - layer_.window) / kBlockTokens : 0;
        const std::byte* data = layer_.cache + rows.table[block] * layout.block_bytes();
        const int seen = std::min(kBlockTokens, position + 1 - block * kBlockTokens);
        fetch_to_second_level(data + layout.keys_at(rows.kv_head), layout.head_bytes());
        fetch_to_second_level(data + layout.values_at(rows.kv_head), layout.head_bytes() / kBlockTokens * seen);
    }

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
