#include "program.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "sample.hpp"

namespace anthesis {
namespace {

constexpr std::size_t kCachedWeightBytes = 256 << 10;

std::size_t up_to_line(std::size_t nbytes) { return (nbytes + 63) / 64 * 64; }

class Embed final : public Instruction {
public:
    explicit Embed(EmbedSpec spec) : spec_(std::move(spec)) {}

    void run(const Step& step, const Team& team) override {
        const std::int32_t* ids = spec_.ids == EmbedSpec::Ids::tokens ? step.in.tokens : step.in.positions;
        float* out = step.at(spec_.out);
        const auto [first, last] = team.share(step.in.rows);
        for (int row = first; row < last; ++row) {
            const long long id = static_cast<long long>(ids[row]) + spec_.offset;
            float* to = out + static_cast<std::size_t>(row) * spec_.out.width;
            if (id >= 0 && id < spec_.matrix->layout.rows)
                dequantize_row(*spec_.matrix, static_cast<int>(id), to);
            else
                std::fill_n(to, spec_.out.width, 0.0f);
        }
    }

private:
    EmbedSpec spec_;
};

class NormRows final : public Instruction {
public:
    explicit NormRows(NormRowsSpec spec) : spec_(std::move(spec)) {}

    void run(const Step& step, const Team& team) override {
        const NormSpec norm = spec_.norm.spec();
        const int runs = spec_.x.width / spec_.width;
        const float* x = step.at(spec_.x);
        float* out = step.at(spec_.out);
        const auto [first, last] = team.share(step.rows_of(spec_.x) * runs);
        for (int i = first; i < last; ++i) {
            const std::size_t at = static_cast<std::size_t>(i) * spec_.width;
            step.kernels.norm(norm, x + at, out + at, spec_.width);
        }
    }

private:
    NormRowsSpec spec_;
};

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

class Angles final : public Instruction {
public:
    explicit Angles(AnglesSpec spec) : spec_(std::move(spec)) {}

    void run(const Step& step, const Team& team) override {
        const std::size_t half = spec_.frequencies.size();
        float* out = step.at(spec_.out);
        const auto [first, last] = team.share(step.in.rows);
        for (int row = first; row < last; ++row) {
            float* to = out + static_cast<std::size_t>(row) * 2 * half;
            for (std::size_t i = 0; i < half; ++i) {
                const double angle = step.in.positions[row] * spec_.frequencies[i];
                to[i] = static_cast<float>(std::cos(angle));
                to[half + i] = static_cast<float>(std::sin(angle));
            }
        }
    }

private:
    AnglesSpec spec_;
};

class Rotate final : public Instruction {
public:
    explicit Rotate(RotateSpec spec) : spec_(std::move(spec)) {}

    void run(const Step& step, const Team& team) override {
        const int heads = spec_.x.width / spec_.head_dim;
        const float *x = step.at(spec_.x), *angles = step.at(spec_.angles);
        float* out = step.at(spec_.out);
        const auto [first, last] = team.share(step.in.rows * heads);
        for (int i = first; i < last; ++i) {
            const std::size_t at = static_cast<std::size_t>(i) * spec_.head_dim;
            step.kernels.rotate(x + at, angles + static_cast<std::size_t>(i / heads) * spec_.head_dim, out + at, spec_.head_dim);
        }
    }

private:
    RotateSpec spec_;
};

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

class Elementwise final : public Instruction {
public:
    explicit Elementwise(ElementwiseSpec spec) : spec_(std::move(spec)) {}

    void run(const Step& step, const Team& team) override {
        using Kind = ElementwiseSpec::Kind;
        const std::size_t width = spec_.out.width;
        float* out = step.at(spec_.out);
        const float* a = step.at(spec_.a);
        const float* b = spec_.kind == Kind::add || spec_.kind == Kind::multiply ? step.at(spec_.b) : nullptr;
        const auto [first, last] = team.share(step.rows_of(spec_.out));
        for (int row = first; row < last; ++row) {
            float* to = out + row * width;
            const float* from = a + row * width;
            switch (spec_.kind) {
            case Kind::activate: step.kernels.activate(spec_.activation, from, to, static_cast<int>(width)); break;
            case Kind::add:
                for (std::size_t i = 0; i < width; ++i) to[i] = from[i] + b[row * width + i];
                break;
            case Kind::multiply:
                for (std::size_t i = 0; i < width; ++i) to[i] = from[i] * b[row * width + i];
                break;
            case Kind::add_vector:
                for (std::size_t i = 0; i < width; ++i) to[i] = from[i] + (*spec_.vector)[i];
                break;
            case Kind::select_rows:
                std::memcpy(to, a + static_cast<std::size_t>(step.in.logit_row_numbers[row]) * width, width * sizeof(float));
                break;
            }
        }
    }

private:
    ElementwiseSpec spec_;
};

class Argmax final : public Instruction {
public:
    explicit Argmax(ArgmaxSpec spec) : spec_(spec) {}

    Needs needs(const Kernels&, int, int logit_rows, int threads) const override {
        return {0, 0, static_cast<std::size_t>(logit_rows) * threads};
    }

    void run(const Step& step, const Team& team) override {
        const float* logits = step.at(spec_.logits);
        const std::size_t width = spec_.logits.width;
        auto* best = reinterpret_cast<std::int32_t*>(step.partial); // (L, threads): the place of each thread's best
        const auto [first, last] = team.share(spec_.usable);
        for (int row = 0; row < step.in.logit_rows; ++row)
            best[row * team.size() + team.thread] =
                first < last ? first + step.kernels.argmax(logits + row * width + first, last - first) : -1;
        team.barrier();
        const auto [from, to] = team.share(step.in.logit_rows);
        for (int row = from; row < to; ++row) {
            const float* x = logits + row * width;
            int found = -1;
            for (int i = 0; i < team.size(); ++i) {
                const int place = best[row * team.size() + i];
                if (place >= 0 && (found < 0 || x[place] > x[found] || (std::isnan(x[place]) && !std::isnan(x[found])))) found = place;
            }
            step.out.token[row] = found >= 0 && std::isfinite(x[found]) ? found : -1;
        }
    }

private:
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

void Needs::cover(const Needs& other) {
    packed_bytes = std::max(packed_bytes, other.packed_bytes);
    own_bytes = std::max(own_bytes, other.own_bytes);
    partial_floats = std::max(partial_floats, other.partial_floats);
}

Program::Program(std::shared_ptr<Pool> pool, std::size_t floats_per_row, std::size_t floats_per_logit_row)
    : pool_(std::move(pool)), kernels_(chosen_kernels()), floats_per_row_(floats_per_row),
      floats_per_logit_row_(floats_per_logit_row), own_(static_cast<std::size_t>(pool_->size())) {}

void Program::add(EmbedSpec spec) { instructions_.push_back(std::make_unique<Embed>(std::move(spec))); }
void Program::add(NormRowsSpec spec) { instructions_.push_back(std::make_unique<NormRows>(std::move(spec))); }
void Program::add(LinearSpec spec) {
    instructions_.push_back(std::make_unique<Linear>(std::move(spec), kernels_, pool_->size()));
}
void Program::add(AnglesSpec spec) { instructions_.push_back(std::make_unique<Angles>(std::move(spec))); }
void Program::add(RotateSpec spec) { instructions_.push_back(std::make_unique<Rotate>(std::move(spec))); }
void Program::add(AttendSpec spec) { instructions_.push_back(std::make_unique<Attend>(std::move(spec), pool_->size())); }
void Program::add(ElementwiseSpec spec) { instructions_.push_back(std::make_unique<Elementwise>(std::move(spec))); }
void Program::add(ArgmaxSpec spec) { instructions_.push_back(std::make_unique<Argmax>(spec)); }
void Program::add(SampleSpec spec) { instructions_.push_back(std::make_unique<Sample>(spec)); }

void Program::reserve(const StepInputs& in) {
    if (in.rows <= reserved_rows_ && in.logit_rows <= reserved_logit_rows_) return;
    const int rows = std::max(in.rows, reserved_rows_), logit_rows = std::max(in.logit_rows, reserved_logit_rows_);
    Needs needs;
    for (const auto& instruction : instructions_) instruction->reserve(pool_->size());
    for (const auto& instruction : instructions_) needs.cover(instruction->needs(kernels_, rows, logit_rows, pool_->size()));
    reserved_rows_ = reserved_logit_rows_ = 0;
    memory_.clear();
    const auto take = [&](std::size_t nbytes) {
        memory_.push_back(std::make_unique<Pages>(std::max<std::size_t>(nbytes, 64)));
        return static_cast<std::byte*>(memory_.back()->data());
    };
    // kernels may read up to 16 floats from the start of a shorter row
    token_rows_ = reinterpret_cast<float*>(take((floats_per_row_ * rows + 16) * sizeof(float)));
    logit_rows_ = reinterpret_cast<float*>(take((floats_per_logit_row_ * logit_rows + 16) * sizeof(float)));
    packed_ = take(needs.packed_bytes);
    partial_ = reinterpret_cast<float*>(take(needs.partial_floats * sizeof(float)));
    for (std::byte*& own : own_) own = take(needs.own_bytes);
    reserved_rows_ = rows;
    reserved_logit_rows_ = logit_rows;
}

void Program::run(const StepInputs& in, const StepOutputs& out) {
    reserve(in);
    const Step step{kernels_, in, token_rows_, logit_rows_, packed_, own_.data(), partial_, out};
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
