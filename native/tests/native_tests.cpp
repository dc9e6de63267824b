// The native code without Python, for the sanitizers: every kind of matrix, instruction and set of kernels, on one to
// three threads. What the results must be is checked here only roughly, by the exact product of the same numbers without
// rounded inputs; the Python tests look closer.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "checks.hpp"
#include "matrix.hpp"
#include "pool.hpp"
#include "program.hpp"
#include "sample.hpp"

using namespace anthesis;

namespace {

Vector vector_of(std::vector<float> values) {
    values.resize((values.size() + 15) / 16 * 16);
    return std::make_shared<std::vector<float>>(std::move(values));
}

// A matrix of random bytes of this kind; halves are 1, so that scales and minimums are.
std::shared_ptr<Matrix> random_matrix(Arena& arena, Pool& pool, const std::string& name, int rows, int columns, bool biased = false) {
    const MatrixKind kind = matrix_kind(name);
    const MatrixLayout layout(kind, rows, columns, biased);
    const std::size_t row_bytes = kind.elements == Elements::fp32   ? columns * 4u
                                  : kind.elements == Elements::int8 ? columns
                                  : kind.elements == Elements::int4 ? columns / 2u
                                                                    : columns * 2u;
    std::vector<std::byte> values(row_bytes * rows);
    if (kind.elements == Elements::int8 || kind.elements == Elements::int4) {
        for (std::byte& value : values) value = static_cast<std::byte>(random_numbers() & 0xff);
        if (kind.elements == Elements::int8)
            for (std::byte& value : values)
                if (value == std::byte{0x80}) value = std::byte{0};
    } else {
        for (std::size_t i = 0; i < values.size() / (kind.elements == Elements::fp32 ? 4 : 2); ++i) {
            if (kind.elements == Elements::fp32) {
                const float value = static_cast<float>(static_cast<int>(random_numbers() % 17) - 8) / 8;
                std::memcpy(values.data() + 4 * i, &value, 4);
            } else {
                const std::uint16_t words[] = {0x3c00, 0xbc00, 0x0000, 0x3800}; // halves; as bf16 small numbers
                std::memcpy(values.data() + 2 * i, &words[random_numbers() % 4], 2);
            }
        }
    }
    const int groups = kind.group ? columns / kind.group : 1;
    const std::vector<std::uint16_t> ones(static_cast<std::size_t>(rows) * groups, 0x3c00);
    auto matrix = std::make_shared<Matrix>(Matrix{layout, arena.take(layout.nbytes())});
    const StoredMatrix stored{values.data(),
                              row_bytes,
                              ones.data(),
                              static_cast<std::size_t>(groups),
                              kind.has_minimum ? ones.data() : nullptr,
                              static_cast<std::size_t>(groups)};
    pool.run([&](int thread) {
        const auto [first, last] = Team{pool, thread}.share(layout.tiles);
        pack_tiles(stored, *matrix, first, last);
    });
    return matrix;
}

std::shared_ptr<Matrix> matrix_of(Arena& arena, const std::vector<float>& values, int rows, int columns, bool biased = false) {
    const MatrixLayout layout(matrix_kind("fp32"), rows, columns, biased);
    auto matrix = std::make_shared<Matrix>(Matrix{layout, arena.take(layout.nbytes())});
    pack_tiles({reinterpret_cast<const std::byte*>(values.data()), columns * sizeof(float)}, *matrix, 0, layout.tiles);
    return matrix;
}

struct Rows {
    std::vector<std::int32_t> numbers, slots, segments, table;
    StepInputs in;

    explicit Rows(int rows, int blocks = 4) : numbers(rows), slots(rows), segments{0, rows, 0}, table(blocks) {
        for (int i = 0; i < rows; ++i) numbers[i] = i;
        for (int i = 0; i < blocks; ++i) table[i] = i;
        in.rows = in.logit_rows = rows;
        in.tokens = in.positions = in.logit_row_numbers = numbers.data();
        in.slots = slots.data();
        in.segments = segments.data();
        in.num_segments = 1;
        in.block_table = table.data();
        in.table_width = blocks;
    }
};

void test_products(int threads) {
    auto pool = std::make_shared<Pool>(threads);
    Arena arena;
    for (const char* name : {"fp32", "fp16", "bf16", "int8", "int8-g32", "int4", "int4m", "int4-g64", "int4m-g128"})
        for (const bool wide : {false, true})
            for (const int rows : {1, 3, 14}) {
                const int columns = 128, outputs = 37;
                const auto matrix = random_matrix(arena, *pool, name, outputs, columns, true);
                std::vector<float> x = normal(static_cast<std::size_t>(rows) * columns);
                const bool spoiled = rows == 14; // its last row: nothing may overflow on the way
                if (spoiled) {
                    x.end()[-3] = std::numeric_limits<float>::quiet_NaN();
                    x.end()[-70] = std::numeric_limits<float>::infinity();
                }
                const Place input{Place::Rows::token, 0, columns};
                const Place output{Place::Rows::token, 128, outputs};
                Program program(pool, 128 + 48, 48);
                program.add(EmbedSpec{EmbedSpec::Ids::tokens, matrix_of(arena, x, rows, columns), 0, input});
                LinearSpec spec;
                spec.x = input;
                const Vector bias = vector_of(normal(outputs));
                set_biases(*matrix, bias->data());
                spec.parts.push_back({matrix, nullptr, true, false, wide ? InputWidth::wide : InputWidth::natural, output, true});
                program.add(std::move(spec));
                std::vector<float> logits(static_cast<std::size_t>(rows) * outputs);
                program.run(Rows(rows).in, StepOutputs{.logits = logits.data()});
                std::vector<float> weights(columns);
                for (int o = 0; o < outputs; ++o) {
                    dequantize_row(*matrix, o, weights.data());
                    for (int r = 0; r < rows; ++r) {
                        double sum = (*bias)[o], magnitude = 1;
                        for (int k = 0; k < columns; ++k) {
                            sum += static_cast<double>(x[r * columns + k]) * weights[k];
                            magnitude += std::abs(static_cast<double>(x[r * columns + k]) * weights[k]);
                        }
                        const float found = logits[r * outputs + o];
                        const bool is_right = std::isfinite(sum) ? std::abs(found - sum) < 0.01 * magnitude : !std::isfinite(found);
                        check(is_right, std::string("product ") + name);
                    }
                }
            }
}

// A layer of everything: norm, queries, keys, values, rotation, attention, a gated product, a residual, and the choice of
// a token. Steps of one prompt and its next token, of two more prompts, and of the next tokens of all three sequences.
std::vector<std::int32_t> run_layer(int threads, bool bf16) {
    random_numbers.seed(7);
    auto pool = std::make_shared<Pool>(threads);
    Arena arena;
    const int hidden = 48, size = 12, heads = 4, kv_heads = 2, ffn = 70, vocab = 101, rows = 70;
    const auto weight = [&](int outputs, int columns, bool biased = false) {
        std::vector<float> values = normal(static_cast<std::size_t>(outputs) * columns);
        for (float& value : values) value /= 8;
        return matrix_of(arena, values, outputs, columns, biased);
    };
    const auto embedding = weight(vocab, hidden);
    const Place x{Place::Rows::token, 0, hidden}, q{Place::Rows::token, 48, heads * size};
    const Place k{Place::Rows::token, 96, kv_heads * size}, v{Place::Rows::token, 128, kv_heads * size};
    const Place angles{Place::Rows::token, 160, size}, attended{Place::Rows::token, 176, heads * size};
    const Place sum{Place::Rows::token, 224, hidden}, gated{Place::Rows::token, 272, ffn}, last{Place::Rows::token, 352, hidden};
    const Place selected{Place::Rows::logit, 0, hidden}, logits{Place::Rows::logit, 48, vocab};
    const auto layout = CacheLayout{kv_heads, size, bf16};
    auto pages = std::make_shared<Pages>(layout.block_bytes() * 6);
    auto* data = static_cast<std::byte*>(pages->data());
    const auto cache = std::make_shared<LayerCache>(LayerCache{layout, 6, std::shared_ptr<std::byte>(pages, data)});
    const auto norm = std::make_shared<Norm>(Norm{vector_of(std::vector<float>(hidden, 1.0f)), nullptr, 1e-5f, true});

    Program program(pool, 400, 48 + 112);
    program.add(AnglesSpec{{1.0, 0.5, 0.25, 0.125, 0.1, 0.01}, angles});
    program.add(EmbedSpec{EmbedSpec::Ids::tokens, embedding, 0, x});
    LinearSpec qkv;
    qkv.norm = norm;
    qkv.x = x;
    for (const Place out : {q, k, v}) qkv.parts.push_back({weight(out.width, hidden), nullptr, false, false, InputWidth::wide, out, false});
    program.add(std::move(qkv));
    AttendSpec attend;
    attend.cache = cache;
    attend.q = q;
    attend.k = k;
    attend.v = v;
    attend.out = attended;
    attend.rotates = true;
    attend.angles = angles;
    attend.queries_per_kv_head = heads / kv_heads;
    attend.heads = heads;
    attend.scale = 0.3f;
    attend.slopes = {0.5f, 0.25f, 0.125f, 0.0625f};
    attend.window = 66;
    program.add(std::move(attend));
    LinearSpec out;
    out.x = attended;
    out.parts.push_back({weight(hidden, heads * size), nullptr, false, false, InputWidth::natural, sum, false});
    out.has_residual = true;
    out.residual = x;
    program.add(std::move(out));
    LinearSpec up;
    up.norm = norm;
    up.x = sum;
    up.activation = Activation::silu;
    const auto gate = weight(ffn, hidden, true);
    set_biases(*gate, normal(ffn).data());
    up.parts.push_back({gate, weight(ffn, hidden), true, false, InputWidth::natural, gated, false});
    program.add(std::move(up));
    LinearSpec down;
    down.x = gated;
    down.parts.push_back({weight(hidden, ffn), nullptr, false, false, InputWidth::natural, last, false});
    down.has_residual = true;
    down.residual = sum;
    program.add(std::move(down));
    program.add(ElementwiseSpec{ElementwiseSpec::Kind::select_rows, Activation::none, last, {}, selected, nullptr});
    LinearSpec head;
    head.norm = norm;
    head.x = selected;
    head.parts.push_back({embedding, nullptr, false, false, InputWidth::natural, logits, false});
    head.best_of = vocab - 3;
    program.add(std::move(head));
    program.add(ArgmaxSpec{logits, vocab - 3, true});
    program.measure(true);

    std::vector<std::int32_t> tokens(rows + 1 + 66 + 3);
    Rows prompt(rows);
    program.run(prompt.in, StepOutputs{.token = tokens.data()});
    Rows next(1);
    next.numbers = {tokens[rows - 1]};
    const std::int32_t position = rows, zero = 0;
    next.in.tokens = next.numbers.data();
    next.in.positions = &position;
    next.in.logit_row_numbers = &zero;
    program.run(next.in, StepOutputs{.token = tokens.data() + rows});

    const std::vector<std::int32_t> table{0, 1, 2, 3, 4, 5}; // two blocks for each of three sequences
    const auto run_many = [&](Rows& many, const std::vector<std::int32_t>& positions, std::int32_t* token) {
        many.in.positions = positions.data();
        many.in.segments = many.segments.data();
        many.in.num_segments = static_cast<int>(many.segments.size() / 3);
        many.in.block_table = table.data();
        many.in.table_width = 2;
        program.run(many.in, StepOutputs{.token = token});
    };
    Rows prompts(63 + 3);
    std::vector<std::int32_t> positions = prompts.numbers;
    for (int i = 0; i < 63 + 3; ++i) prompts.slots[i] = i < 63 ? 1 : 2;
    for (int i = 63; i < 63 + 3; ++i) positions[i] -= 63;
    prompts.segments = {0, 63, 0, 63, 3, 0};
    run_many(prompts, positions, tokens.data() + rows + 1);
    Rows singles(3);
    singles.slots = {0, 1, 2};
    singles.segments = {0, 1, rows + 1, 1, 1, 63, 2, 1, 3};
    run_many(singles, {rows + 1, 63, 3}, tokens.data() + rows + 1 + 66);
    for (const std::int32_t token : tokens) check(token >= 0 && token < vocab, "a token of the vocabulary");
    check(program.seconds().size() == 10, "a time for each instruction");
    return tokens;
}

void test_sampling(int threads) {
    Pool pool(threads);
    const int vocab = 5000;
    const std::vector<float> logits = normal(vocab);
    const std::vector<std::uint8_t> seen((vocab + 7) / 8, 0x11);
    Sampler sampler;
    sampler.reserve(vocab, threads);
    for (const std::int32_t top_k : {0, 1, 50})
        for (const float top_p : {1.0f, 0.9f}) {
            const SampleRow row{logits.data(), vocab, vocab - 3, 0.8f, top_p, 0.01f, 1.3f, top_k, 42, seen.data(), 7};
            std::int32_t token = -2, top_tokens[5];
            float logprob, top_logprobs[5];
            pool.run([&](int thread) {
                const Team team{pool, thread};
                sampler.choose(team, row, token);
                sampler.logprobs(team, row, token, 5, logprob, top_tokens, top_logprobs);
            });
            check(token >= 0 && token < vocab - 3 && logprob < 0, "a sampled token");
        }
}

} // namespace

int main() {
    for (const Kernels* kernels : usable_kernels()) {
        setenv("ANTHESIS_CPU_KERNELS", kernels->name, 1);
        for (const int threads : {1, 2, 3}) {
            test_products(threads);
            test_sampling(threads);
        }
        for (const bool bf16 : {false, true}) {
            const std::vector<std::int32_t> one = run_layer(1, bf16);
            check(run_layer(2, bf16) == one && run_layer(3, bf16) == one, "the same tokens with any number of threads");
        }
    }
    for (const int ranks : {1, 2, 3}) {
        for (const int threads : {1, 2}) {
            test_exchanges(ranks, threads);
            test_sampling_over_ranks(ranks, threads);
        }
        test_failing(ranks);
    }
    std::printf("%d checks passed\n", checks.load());
}
