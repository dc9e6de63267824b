// Products with matrices.

#include "instruction.hpp"

#include <algorithm>

namespace anthesis {
namespace {

constexpr std::size_t kCachedWeightBytes = 256 << 10; // of a second-level cache
constexpr std::size_t kStreamedBytes = 32 << 10;      // of four streams between two looks at who needs help

class Linear final : public Instruction {
public:
    Linear(LinearSpec spec, const Kernels& kernels, int threads) : spec_(std::move(spec)) {
        for (const LinearSpec::Part& part : spec_.parts) {
            const MatrixKind kind = part.matrix->layout.kind;
            const int format = kernels.input_format(kind, part.width);
            const auto known = std::ranges::find(inputs_, format, &Input::format);
            input_of_part_.push_back(static_cast<std::size_t>(known - inputs_.begin()));
            if (known == inputs_.end())
                inputs_.push_back({format, kind, part.width, kernels.packed_row_bytes(kind, part.width, spec_.x.width)});
            tasks_.emplace_back(threads);
        }
    }

    Needs needs(const Kernels&, const StepSize& size, int) const override {
        const std::size_t count = spec_.x.rows == Place::Rows::token ? size.rows : size.logit_rows;
        std::size_t packed = 0;
        for (const Input& input : inputs_) packed += up_to_line(count * input.row_bytes);
        return {packed, packed + up_to_line((spec_.x.width + 512) * sizeof(float)), 0};
    }

    void begin(int thread) noexcept override {
        for (Tasks& tasks : tasks_) tasks.reset(thread);
    }

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
        for (int i = 0; i < team.size(); ++i) // first this thread's share of every part, then those of others
            for (std::size_t part = 0; part < spec_.parts.size(); ++part) {
                const TilesProduct product = product_of(step, rows, packed, part);
                if (rows == 1)
                    multiply_row(step.kernels, team.other(i), product, tasks_[part]);
                else
                    multiply_rows(step.kernels, team.other(i), product, tasks_[part]);
            }
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

    TilesProduct product_of(const Step& step, int rows, const std::byte* packed, std::size_t index) const {
        const LinearSpec::Part& part = spec_.parts[index];
        for (std::size_t i = 0; i < input_of_part_[index]; ++i) packed += up_to_line(rows * inputs_[i].row_bytes);
        const std::size_t width = part.out.width;
        return {part.matrix.get(),
                part.gate_by.get(),
                part.gate_adds_biases,
                part.width,
                packed,
                rows,
                {part.adds_biases, part.to_logits && step.out.logits ? step.out.logits : step.at(part.out), width,
                 spec_.activation, spec_.has_residual ? step.at(spec_.residual) : nullptr, width}};
    }

    // A share is read as four streams from its beginning to its end, however often a thread looks for who needs help: memory
    // is slow where a stream begins.
    static void multiply_row(const Kernels& kernels, const Team& whose, const TilesProduct& product, Tasks& tasks) {
        const MatrixLayout& layout = product.matrix->layout;
        const auto [first, last] = whose.share(layout.tiles);
        const int streams = product.gate_by ? 2 : 4; // of each matrix
        const int apart = (last - first) / streams, rest = first + streams * apart;
        const int at_once = std::max(1, static_cast<int>(kStreamedBytes / (4 * layout.tile_bytes)));
        tasks.take(whose, apart + (rest < last), at_once, [&, first = first, last = last](int begin, int end) {
            kernels.streams_product(product, first + begin, first + std::min(end, apart), apart);
            if (end > apart) kernels.tiles_product(product, rest, last);
        });
    }

    static void multiply_rows(const Kernels& kernels, const Team& whose, const TilesProduct& product, Tasks& tasks) {
        const MatrixLayout& layout = product.matrix->layout;
        const auto [first, last] = whose.share(layout.tiles);
        const int most = std::max(1, (last - first) / 8); // so that nobody waits long at the end
        const int at_once = std::clamp(static_cast<int>(kCachedWeightBytes / layout.tile_bytes), 1, most);
        tasks.take(whose, last - first, at_once,
                   [&, first = first](int begin, int end) { kernels.tiles_product(product, first + begin, first + end); });
    }

    LinearSpec spec_;
    std::vector<Input> inputs_;              // the formats that the parts read, each once
    std::vector<std::size_t> input_of_part_; // which of them each reads
    std::vector<Tasks> tasks_;               // of each part
};

} // namespace

std::unique_ptr<Instruction> make_instruction(LinearSpec spec, const Kernels& kernels, int threads) {
    return std::make_unique<Linear>(std::move(spec), kernels, threads);
}

} // namespace anthesis
