#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "communicator.hpp"
#include "kernels/kernels.hpp"
#include "matrix.hpp"
#include "team.hpp"

namespace anthesis {

// Values of a step live in an arena of floats. Which rows a value has, and where it begins for a step of one row: for R
// rows everything is R times as far from the start, so one plan serves steps of every size.
struct Place {
    enum class Rows : std::uint8_t { token, logit }; // R or L rows
    Rows rows = Rows::token;
    std::size_t offset = 0; // floats, per row
    int width = 0;          // floats
};

// What the caller hands over for one step. Arrays are those of engine.py's programs.
struct StepInputs {
    int rows = 0, logit_rows = 0;
    const std::int32_t *tokens = nullptr, *positions = nullptr, *slots = nullptr;
    const std::int32_t* segments = nullptr; // (B, 3): first row, rows, first position
    int num_segments = 0;
    const std::int32_t* block_table = nullptr; // (B, M)
    int table_width = 0;
    const std::int32_t* logit_row_numbers = nullptr; // (L,)
    // Of programs that sample: per row of logits, and (L, ceil(V / 8)) bits of the ids that were seen.
    const float *temperature = nullptr, *top_p = nullptr, *min_p = nullptr, *repetition_penalty = nullptr;
    const std::int32_t* top_k = nullptr;
    const std::uint64_t* seed = nullptr;
    const std::uint8_t* seen = nullptr;
    const float* hidden = nullptr; // (R, E), of a stage that is not the first
};

// Where a step's results go; null where the program has no such result.
struct StepOutputs {
    std::int32_t* token = nullptr;        // (L,)
    float* logits = nullptr;              // (L, V); else logits are in the arena
    float* logprob = nullptr;             // (L,)
    std::int32_t* top_tokens = nullptr;   // (L, top)
    float* top_logprobs = nullptr;        // (L, top)
    float* hidden = nullptr;              // (R, E), of a stage that is not the last
};

// A step in progress: its inputs, and where its values are.
struct Step {
    const Kernels& kernels;
    const StepInputs& in;
    float* token_rows;
    float* logit_rows;
    std::byte* packed;     // inputs of a product that all threads share
    std::byte* const* own; // working memory of each thread
    float* partial;        // results of threads that are put together afterwards
    const StepOutputs& out;
    Communicator* ranks; // null where there is one

    int rows_of(Place place) const { return place.rows == Place::Rows::token ? in.rows : in.logit_rows; }
    float* at(Place place) const {
        return place.rows == Place::Rows::token ? token_rows + place.offset * in.rows : logit_rows + place.offset * in.logit_rows;
    }
};

// The best token of those that somebody has looked at, with its logit: NaN above all, of equal ones the first.
struct Candidate {
    float logit = 0;
    std::int32_t token = -1; // none yet

    bool is_better_than(const Candidate& other) const {
        if (token < 0 || other.token < 0) return other.token < 0 && token >= 0;
        const bool nan = logit != logit, other_nan = other.logit != other.logit;
        if (nan != other_nan) return nan;
        return logit > other.logit || ((nan || logit == other.logit) && token < other.token);
    }
};

// Whether a product of which only the best output is read leaves candidates: for several rows, whose outputs would go to memory
// and come back.
constexpr bool leaves_candidates(int logit_rows) { return logit_rows > 1; }

// The candidates of a thread in `partial`, one for each row of logits.
inline Candidate* candidates_of(const Step& step, int thread) {
    return reinterpret_cast<Candidate*>(step.partial) + static_cast<std::size_t>(thread) * step.in.logit_rows;
}

struct StepSize {
    int rows, logit_rows;
    int blocks; // of the cache, of one sequence at most
};

// What a step needs besides its values.
struct Needs {
    std::size_t packed_bytes = 0, own_bytes = 0, partial_floats = 0;
    void cover(const Needs& other);
};

// Tasks of one instruction: each thread begins with a share of its own, in order, and helps others when it is done, so
// that a core which is slow for a while does not keep all waiting.
class Tasks {
public:
    explicit Tasks(int threads) : next_(static_cast<std::size_t>(threads)) {}

    void reset(int thread) noexcept { next_[static_cast<std::size_t>(thread)].value.store(0, std::memory_order_relaxed); }

    // Calls work(first, last) for runs of at most `at_once` tasks until all `count` have been taken.
    template <class Work> void run(const Team& team, int count, int at_once, const Work& work) {
        for (int i = 0; i < team.size(); ++i) {
            const Team whose = team.other(i);
            const auto [first, last] = whose.share(count);
            take(whose, last - first, at_once, [&, first = first](int begin, int end) { work(first + begin, first + end); });
        }
    }

    // Calls work(first, last) until all `count` tasks of one thread's share have been taken.
    template <class Work> void take(const Team& whose, int count, int at_once, const Work& work) {
        std::atomic<int>& next = next_[static_cast<std::size_t>(whose.thread)].value;
        for (int taken; (taken = next.fetch_add(at_once, std::memory_order_relaxed)) < count;)
            work(taken, std::min(taken + at_once, count));
    }

private:
    std::vector<Counter> next_;
};

// One operation on the values of a step. All threads call `run`; what they write is seen by all after the barrier that
// follows.
class Instruction {
public:
    virtual ~Instruction() = default;
    virtual void run(const Step& step, const Team& team) = 0;
    virtual Needs needs(const Kernels&, const StepSize&, int /*threads*/) const { return {}; }
    // Before the first step; and by each thread before every step.
    virtual void reserve(int /*threads*/) {}
    virtual void begin(int /*thread*/) noexcept {}
};

// out[r] = row of the matrix with the number ids[r] + offset, or zeros where there is none.
struct EmbedSpec {
    enum class Ids { tokens, positions } ids = Ids::tokens;
    std::shared_ptr<const Matrix> matrix;
    int offset = 0;
    Place out;
};

using Vector = std::shared_ptr<const std::vector<float>>; // padded with zeros to a multiple of 16

struct Norm {
    Vector weight, bias; // bias may be null
    float epsilon = 0;
    bool centered = false;
    NormSpec spec() const { return {weight->data(), bias ? bias->data() : nullptr, epsilon, centered}; }
};

// Each run of `width` floats of every row.
struct NormRowsSpec {
    Norm norm;
    int width = 0;
    Place x, out;
};

// outs[i] = activation(norm(x) matrix^T + bias) * ... + residual: see `Linear` in program/ops.py.
struct LinearSpec {
    struct Part {
        std::shared_ptr<const Matrix> matrix, gate_by;
        bool adds_biases = false, gate_adds_biases = false; // those of the matrices
        InputWidth width = InputWidth::natural;
        Place out;
        bool to_logits = false; // the caller's array, where it gave one
    };
    std::shared_ptr<const Norm> norm; // over whole rows, or null
    Place x;
    std::vector<Part> parts;
    Activation activation = Activation::none; // of a single part
    bool has_residual = false;
    Place residual;
    // Of its outputs for rows of logits, those of a single part without a gate, the argmax of the first so many is all that is
    // read. 0: its outputs are wanted.
    int best_of = 0;
};

// angles[r] = cosines, then sines, of position * frequency.
struct AnglesSpec {
    std::vector<double> frequencies; // (D / 2,)
    Place out;
};

struct RotateSpec {
    Place x, angles, out;
    int head_dim = 0;
};

// The keys and values of all blocks of a layer.
struct LayerCache {
    CacheLayout layout;
    int blocks;
    std::shared_ptr<std::byte> data;
};

struct AttendSpec {
    std::shared_ptr<LayerCache> cache;
    Place q, k, v, out;
    bool rotates = false;
    Place angles;
    int queries_per_kv_head = 1, first_head = 0, first_kv_head = 0, heads = 0;
    float scale = 1;
    std::vector<float> slopes; // of this rank's heads; empty without ALiBi
    int window = 0;
};

struct ElementwiseSpec {
    enum class Kind { activate, add, multiply, add_vector, select_rows } kind;
    Activation activation = Activation::none;
    Place a, b, out;
    Vector vector; // of add_vector
};

// out = the sum of x over the ranks.
struct AllReduceSpec {
    Place x, out;
};

// The caller's logits: every rank's columns x, side by side.
struct GatherSpec {
    Place x;
    int width = 0; // of all together
};

// Rows that the stage before this one has computed; or that this one has, for the next.
struct HiddenSpec {
    enum class Way { in, out } way;
    Place place;
};

struct ArgmaxSpec {
    Place logits;
    int first_id = 0; // of this rank's part of the vocabulary
    int usable = 0;   // of the part
    bool over_ranks = false;
    bool of_candidates = false; // the product before it leaves them
};

struct SampleSpec {
    Place logits;
    int usable = 0; // of the part of the vocabulary that this rank has
    int first_id = 0, all_usable = 0, vocab = 0; // where it begins; of the whole
    int ranks = 1;
    int top = -1; // most likely tokens to report; -1: no log-probabilities at all
};

// What runs a specification on a team of so many threads.
std::unique_ptr<Instruction> make_instruction(EmbedSpec spec, const Kernels& kernels, int threads);
std::unique_ptr<Instruction> make_instruction(NormRowsSpec spec, const Kernels& kernels, int threads);
std::unique_ptr<Instruction> make_instruction(LinearSpec spec, const Kernels& kernels, int threads);
std::unique_ptr<Instruction> make_instruction(AnglesSpec spec, const Kernels& kernels, int threads);
std::unique_ptr<Instruction> make_instruction(RotateSpec spec, const Kernels& kernels, int threads);
std::unique_ptr<Instruction> make_instruction(AttendSpec spec, const Kernels& kernels, int threads);
std::unique_ptr<Instruction> make_instruction(ElementwiseSpec spec, const Kernels& kernels, int threads);
std::unique_ptr<Instruction> make_instruction(AllReduceSpec spec, const Kernels& kernels, int threads);
std::unique_ptr<Instruction> make_instruction(GatherSpec spec, const Kernels& kernels, int threads);
std::unique_ptr<Instruction> make_instruction(HiddenSpec spec, const Kernels& kernels, int threads);
std::unique_ptr<Instruction> make_instruction(ArgmaxSpec spec, const Kernels& kernels, int threads);
std::unique_ptr<Instruction> make_instruction(SampleSpec spec, const Kernels& kernels, int threads);

} // namespace anthesis
