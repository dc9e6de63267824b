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

    Needs needs(const Kernels& kernels, const StepSize& size, int threads) const override {
        const std::size_t count = spec_.x.rows == Place::Rows::token ? size.rows : size.logit_rows;
        const std::size_t packed = packed_bytes(kernels, count), own = packed + scratch_bytes();
        if (spec_.best_of == 0) return {packed, own, 0};
        const std::size_t outputs = count * tiles_at_once(spec_.parts[0].matrix->layout) * kTileRows * sizeof(float);
        return {packed, own + outputs, count * threads * sizeof(Candidate) / sizeof(float)};
    }

    void begin(int thread) noexcept override {
        for (Tasks& tasks : tasks_) tasks.reset(thread);
    }

    void run(const Step& step, const Team& team) override {
        const int rows = step.rows_of(spec_.x);
        if (rows == 0) return;
        // Packing one block takes less time than waiting for somebody else to have done it.
        const bool alone = block_rows(step.kernels.max_rows, rows) >= rows;
        std::byte* own = step.own[team.thread];
        auto* scratch = reinterpret_cast<float*>(own);
        std::byte* packed = alone ? own + scratch_bytes() : step.packed;
        pack(step, team, rows, alone, packed, scratch);
        if (!alone) team.barrier();
        if (spec_.best_of && leaves_candidates(rows)) return find_best(step, team, rows, packed);
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

    // A thread's own memory: what packing needs, the packed inputs of a single block, outputs of which the best is looked for.
    std::size_t scratch_bytes() const { return up_to_line((spec_.x.width + 512) * sizeof(float)); }
    std::size_t packed_bytes(const Kernels& kernels, std::size_t rows) const {
        std::size_t nbytes = 0;
        for (const Input& input : inputs_) nbytes += packed_bytes(kernels, rows, input);
        return nbytes;
    }
    static std::size_t packed_bytes(const Kernels& kernels, std::size_t rows, const Input& input) {
        return up_to_line(static_cast<std::size_t>(padded_rows(kernels.max_rows, static_cast<int>(rows))) * input.row_bytes);
    }

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
                                           {x + row * width, width, std::min(count, rows - row), count, spec_.x.width,
                                            spec_.norm ? &norm : nullptr,
                                            packed + row * input.row_bytes, scratch});
                row += count;
            }
            packed += packed_bytes(step.kernels, static_cast<std::size_t>(rows), input);
        }
    }

    TilesProduct product_of(const Step& step, int rows, const std::byte* packed, std::size_t index) const {
        const LinearSpec::Part& part = spec_.parts[index];
        for (std::size_t i = 0; i < input_of_part_[index]; ++i) packed += packed_bytes(step.kernels, static_cast<std::size_t>(rows), inputs_[i]);
        const std::size_t width = part.out.width;
        return {part.matrix.get(),
                part.gate_by.get(),
                part.gate_adds_biases,
                part.width,
                packed,
                rows,
                {part.adds_biases, part.to_logits && step.out.logits ? step.out.logits : step.at(part.out), 0, width,
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
        take_tiles(whose, product.matrix->layout, tasks, [&](int begin, int end) { kernels.tiles_product(product, begin, end); });
    }

    // Calls work(begin, end) for tiles of a share, as many at once as a cache holds while all rows pass by.
    template <class Work> static void take_tiles(const Team& whose, const MatrixLayout& layout, Tasks& tasks, Work work) {
        const auto [first, last] = whose.share(layout.tiles);
        const int most = std::max(1, (last - first) / 8); // so that nobody waits long at the end
        tasks.take(whose, last - first, std::min(tiles_at_once(layout), most),
                   [&, first = first](int begin, int end) { work(first + begin, first + end); });
    }

    static int tiles_at_once(const MatrixLayout& layout) {
        return std::max(1, static_cast<int>(kCachedWeightBytes / layout.tile_bytes));
    }

    // The outputs of some tiles stay in this thread's memory until the best of them is known.
    void find_best(const Step& step, const Team& team, int rows, const std::byte* packed) {
        TilesProduct product = product_of(step, rows, packed, 0);
        const MatrixLayout& layout = product.matrix->layout;
        product.to.out = reinterpret_cast<float*>(step.own[team.thread] + scratch_bytes() + packed_bytes(step.kernels, static_cast<std::size_t>(rows)));
        product.to.stride = static_cast<std::size_t>(tiles_at_once(layout)) * kTileRows;
        Candidate* best = candidates_of(step, team.thread);
        std::fill_n(best, rows, Candidate{});
        for (int i = 0; i < team.size(); ++i)
            take_tiles(team.other(i), layout, tasks_[0], [&](int begin, int end) {
                product.to.first = begin * kTileRows;
                step.kernels.tiles_product(product, begin, end);
                const int count = std::min(end * kTileRows, spec_.best_of) - product.to.first;
                if (count <= 0) return;
                for (int row = 0; row < rows; ++row) {
                    const float* outputs = product.to.out + row * product.to.stride;
                    const float most = step.kernels.maximum(outputs, count);
                    if (best[row].token >= 0 && most < best[row].logit) continue; // nearly always
                    const int place = step.kernels.argmax(outputs, count);
                    const Candidate found{outputs[place], product.to.first + place};
                    if (found.is_better_than(best[row])) best[row] = found;
                }
            });
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
