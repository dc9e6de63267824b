// Instructions that work row by row.

#include "instruction.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace anthesis {
namespace {

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

} // namespace

std::unique_ptr<Instruction> make_instruction(EmbedSpec spec, const Kernels&, int) {
    return std::make_unique<Embed>(std::move(spec));
}

std::unique_ptr<Instruction> make_instruction(NormRowsSpec spec, const Kernels&, int) {
    return std::make_unique<NormRows>(std::move(spec));
}

std::unique_ptr<Instruction> make_instruction(AnglesSpec spec, const Kernels&, int) {
    return std::make_unique<Angles>(std::move(spec));
}

std::unique_ptr<Instruction> make_instruction(RotateSpec spec, const Kernels&, int) {
    return std::make_unique<Rotate>(std::move(spec));
}

std::unique_ptr<Instruction> make_instruction(ElementwiseSpec spec, const Kernels&, int) {
    return std::make_unique<Elementwise>(std::move(spec));
}

} // namespace anthesis
