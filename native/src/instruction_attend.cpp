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

    Needs needs(const Kernels& kernels, const StepSize& size, int threads) const override {
        return {0, up_to_line(kernels.attend_scratch_floats(layer_) * sizeof(float)), cut_head_floats(kernels, size.blocks) * threads};
    }

    void begin(int thread) noexcept override {
        store_tasks_.reset(thread);
        tasks_.reset(thread);
    }

    void run(const Step& step, const Team& team) override {
        if (has_single_rows(step.in))
            run_single_rows(step, team);
        else
            run_prompts(step, team);
    }

private:
    // Whether no sequence has more than one row.
    static bool has_single_rows(const StepInputs& in) {
        for (int i = 0; i < in.num_segments; ++i)
            if (in.segments[3 * i + 1] > 1) return false;
        return true;
    }

    // Prompts ----------------------------------------------------------------------------------------------------------

    // Rows of a prompt are cut into runs; rows of one run share the reading of keys. A task is a run and a head.
    static constexpr int kRunRows = 24;

    void run_prompts(const Step& step, const Team& team) {
        const StepInputs& in = step.in;
        int tasks = 0;
        for (int i = 0; i < in.num_segments; ++i)
            tasks += (in.segments[3 * i + 1] + kRunRows - 1) / kRunRows * layer_.layout.kv_heads;
        store_tasks_.run(team, tasks, 1, [&](int task, int) { step.kernels.attend_store(run_of_rows(step, team, task)); });
        team.barrier();
        tasks_.run(team, tasks, 1, [&](int task, int) { step.kernels.attend(run_of_rows(step, team, task)); });
    }

    AttendRows run_of_rows(const Step& step, const Team& team, int task) const {
        const std::int32_t* segments = step.in.segments;
        const int heads = layer_.layout.kv_heads;
        int segment = 0, run = task / heads;
        for (;; ++segment) {
            const int runs = (segments[3 * segment + 1] + kRunRows - 1) / kRunRows;
            if (run < runs) break;
            run -= runs;
        }
        const int first = segments[3 * segment] + run * kRunRows;
        return job(step, team, first, std::min(kRunRows, segments[3 * segment + 1] - run * kRunRows), task % heads);
    }

    // Single rows ------------------------------------------------------------------------------------------------------

    // Every thread reads as many blocks of heads as the others: those of the first row's first head, of its second, and so
    // on. At the border of two shares a head may be cut; what its blocks have for it is then put together afterwards.
    struct HeadBlocks {
        int row;                     // where there is one
        int first_block, num_blocks; // that it sees
        int units;                   // blocks of all heads
    };

    HeadBlocks head_blocks(const StepInputs& in, int segment) const {
        if (in.segments[3 * segment + 1] == 0) return {};
        const int row = in.segments[3 * segment], position = in.positions[row];
        const int first = layer_.window ? std::max(0, position + 1 - layer_.window) / kBlockTokens : 0;
        const int count = position / kBlockTokens + 1 - first;
        return {row, first, count, count * layer_.layout.kv_heads};
    }

    void run_single_rows(const Step& step, const Team& team) {
        const StepInputs& in = step.in;
        int units = 0;
        for (int i = 0; i < in.num_segments; ++i) units += head_blocks(in, i).units;
        const auto [first, last] = team.share(units);
        bool any_cut = false;
        for (int i = 0, before = 0; i < in.num_segments; ++i) {
            const HeadBlocks here = head_blocks(in, i);
            if (here.units == 0) continue;
            for (int t = 1; t < team.size(); ++t) {
                const int border = Team{team.pool, t}.share(units).first - before;
                any_cut = any_cut || (border > 0 && border < here.units && border % here.num_blocks != 0);
            }
            run_share(step, team, here, before, std::clamp(first - before, 0, here.units), std::clamp(last - before, 0, here.units), units);
            before += here.units;
        }
        if (!any_cut) return;
        team.barrier();
        for (int i = 0, before = 0; i < in.num_segments; ++i) {
            const HeadBlocks here = head_blocks(in, i);
            if (here.units == 0) continue;
            const int end = last - before, head = end / here.num_blocks;
            // a head that begins in this share and goes on behind it
            if (end > 0 && end < here.units && end % here.num_blocks != 0 && before + head * here.num_blocks >= first)
                step.kernels.attend_finish(job(step, team, here.row, 1, head),
                                           {head, head + 1, here.first_block, here.first_block + here.num_blocks},
                                           cut_head(step, team.thread));
            before += here.units;
        }
    }

    // The units [from, to) of one row: head after head, block after block.
    void run_share(const Step& step, const Team& team, const HeadBlocks& here, int before, int from, int to, int units) const {
        while (from < to) {
            const int head = from / here.num_blocks, block = from % here.num_blocks;
            const int whole = block == 0 ? (to - from) / here.num_blocks : 0;
            const int taken = whole ? whole * here.num_blocks : std::min(here.num_blocks - block, to - from);
            const KeyRange range{head, head + std::max(whole, 1), here.first_block + block,
                                 here.first_block + (whole ? here.num_blocks : block + taken)};
            float* records = nullptr;
            if (!whole) {
                int thread = team.thread; // in whose share the head begins
                while (Team{team.pool, thread}.share(units).first > before + head * here.num_blocks) --thread;
                records = cut_head(step, thread) + cut_head_floats(step.kernels, block);
            }
            step.kernels.attend_row(job(step, team, here.row, 1, head), range, records);
            from += taken;
        }
    }

    std::size_t cut_head_floats(const Kernels& kernels, int blocks) const {
        return kernels.attend_block_floats(layer_) * static_cast<std::size_t>(blocks);
    }
    float* cut_head(const Step& step, int thread) const {
        return step.partial + cut_head_floats(step.kernels, step.in.table_width) * static_cast<std::size_t>(thread);
    }

    AttendRows job(const Step& step, const Team& team, int first_row, int rows, int kv_head) const {
        const StepInputs& in = step.in;
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
                in.block_table + static_cast<std::size_t>(in.slots[first_row]) * in.table_width,
                first_row,
                rows,
                kv_head,
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
