// Products with matrices.

#include "instruction.hpp"

#include <algorithm>

namespace anthesis {
namespace {

constexpr std::size_t kCachedWeightBytes = 256 << 10;

class Linear final : public Instruction {
public:
    Linear(LinearSpec spec, const Kernels& kernels, int threads) : spec_(std::move(spec)), tasks_(threads) {
        for (const LinearSpec::Part& part : spec_.parts) {
            const MatrixKind kind = part.matrix->layout.kind;
            const int format = kernels.input_format(kind, part.width);
            const auto known = std::ranges::find(inputs_, format, &Input::format);
            input_of_part_.push_back(static_cast<std::size_t>(known - inputs_.begin()));
            if (known == inputs_.end())
                inputs_.push_back({format, kind, part.width, kernels.packed_row_bytes(kind, part.width, spec_.x.width)});
            tiles_ += part.matrix->layout.tiles;
            tile_bytes_ = std::max(tile_bytes_, part.matrix->layout.tile_bytes);
        }
    }

    Needs needs(const Kernels&, int rows, int logit_rows, int) const override {
        const std::size_t count = spec_.x.rows == Place::Rows::token ? rows : logit_rows;
        std::size_t packed = 0;
        for (const Input& input : inputs_) packed += up_to_line(count * input.row_bytes);
        return {packed, packed + up_to_line((spec_.x.width + 512) * sizeof(float)), 0};
    }

    void begin(int thread) noexcept override { tasks_.reset(thread); }

    void run(const Step& step, const Team& team) override {
        const int rows = step.rows_of(spec_.x);
        if (rows == 0) return;
        // Packing one block takes less time than waiting for somebody else to have done it.
        const bool alone = block_rows(step.kernels.max_rows, rows) == rows;
        std::byte* own = step.own[team.thread];
        auto* scratch = reinterpret_cast<float*>(own);
        std::byte* packed = alone ? own + up_to_line((spec_.x.width + 512) * sizeof(float)) : step.packed;
        pack(step, team, rows, alone, packed, scratch);
        if (!alone) team.barrier();
        // Of one row four tiles are read at a time. Of many rows few enough for the weights to stay in a second-level cache.
        const int even = tiles_ / (8 * team.size());
        const int at_once = rows == 1 ? std::max(1, even / 4) * 4
                                      : std::clamp(static_cast<int>(kCachedWeightBytes / tile_bytes_), 1, std::max(1, even));
        tasks_.run(team, tiles_, at_once, [&](int first, int last) { multiply(step, rows, packed, first, last); });
    }

private:
    struct Input {
        int format;
        MatrixKind kind;
        InputWidth width;
        std::size_t row_bytes;
    };

    void pack(const Step& step, const Team& team, int rows, bool alone, std::byte* packed, float* scratch) const {
        const float* x = step.at(spec_.x);
        const std::size_t width = spec_.x.width;
        const NormSpec norm = spec_.norm ? spec_.norm->spec() : NormSpec{};
        const int most = step.kernels.max_rows;
        for (const Input& input : inputs_) {
            int block = 0;
            for (int row = 0; row < rows; ++block) {
                const int count = block_rows(most, rows - row);
                if (alone || block % team.size() == team.thread)
                    step.kernels.pack_rows(input.kind, input.width,
                                           {x + row * width, width, count, spec_.x.width, spec_.norm ? &norm : nullptr,
                                            packed + row * input.row_bytes, scratch});
                row += count;
            }
            packed += up_to_line(rows * input.row_bytes);
        }
    }

    void multiply(const Step& step, int rows, const std::byte* packed, int first, int last) const {
        int before = 0;
        for (std::size_t i = 0; i < spec_.parts.size() && before < last; ++i) {
            const LinearSpec::Part& part = spec_.parts[i];
            const int tiles = part.matrix->layout.tiles;
            const int from = std::max(first - before, 0), to = std::min(last - before, tiles);
            before += tiles;
            if (from >= to) continue;
            const std::byte* x = packed;
            for (std::size_t j = 0; j < input_of_part_[i]; ++j) x += up_to_line(rows * inputs_[j].row_bytes);
            const float* residual = spec_.has_residual ? step.at(spec_.residual) : nullptr;
            float* out = part.to_logits && step.out.logits ? step.out.logits : step.at(part.out);
            const std::size_t width = part.out.width;
            const TilesProduct product{part.matrix.get(),
                                       part.gate_by.get(),
                                       part.gate_by_bias ? part.gate_by_bias->data() : nullptr,
                                       part.width,
                                       x,
                                       rows,
                                       {part.bias ? part.bias->data() : nullptr, out, width, spec_.activation, residual, width}};
            step.kernels.tiles_product(product, from, to);
        }
    }

    LinearSpec spec_;
    std::vector<Input> inputs_;              // the formats that the parts read, each once
    std::vector<std::size_t> input_of_part_; // which of them each reads
    int tiles_ = 0;
    std::size_t tile_bytes_ = 1; // of the largest
    Tasks tasks_;
};

} // namespace

std::unique_ptr<Instruction> make_instruction(LinearSpec spec, const Kernels& kernels, int threads) {
    return std::make_unique<Linear>(std::move(spec), kernels, threads);
}

} // namespace anthesis
