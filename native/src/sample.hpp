#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "communicator.hpp"
#include "sample_blocks.hpp"
#include "team.hpp"

namespace anthesis {

// A row of logits and how its next token is chosen: the values of the operation `sample` (program/sample.py). Where the model is
// split over ranks the row is this rank's part of the vocabulary.
struct SampleRow {
    const float* logits;
    int width;  // logits of the row
    int usable; // of those, how many may be chosen
    float temperature, top_p, min_p, repetition_penalty;
    std::int32_t top_k;
    std::uint64_t seed;
    const std::uint8_t* seen; // a bit for each of `vocab` ids, lowest first; not read where the penalty is 1
    std::int32_t position;    // keys the noise
    int first_id = 0;            // of the row
    int all_usable = usable, vocab = width; // of all ranks' parts together
};

// Chooses tokens as `Sample.evaluate` does: the same ones, whatever the number of threads, or of ranks.
//
// A row is worked on by blocks. One pass finds each block's largest logit; by it the others leave out the blocks in
// which nothing can be kept or win, and they take the logarithms of few tokens only. The scores that a repetition
// penalty changes stand in a list, and the block they belong to is read from a copy without them.
//
// Ranks exchange what their threads found (the largest logits, masses by ranges of scores, tokens that may be kept, the draws), and
// never their logits.
class Sampler {
public:
    // Makes room for rows and teams up to these sizes, and for `listed` tokens of all ranks together, where there are several;
    // nothing is allocated after. Throws std::bad_alloc.
    void reserve(int width, int threads, std::size_t listed = 0);

    // Called by every thread of the team with the same arguments; when it returns, the token is written: -1 where a
    // usable logit is NaN or +inf, or all are -inf.
    void choose(const Team& team, const SampleRow& row, std::int32_t& token, Communicator* ranks = nullptr) noexcept;

    // Likewise. The log-probability of a token that `choose` gave, and of the `top` most likely usable ids (at most
    // `all_usable`), of equal ones the lowest first; where the token is -1, NaN and ids of -1. Only the logits, and where they
    // stand, are read of the row.
    void logprobs(const Team& team, const SampleRow& row, std::int32_t token, int top, float& logprob, std::int32_t* top_tokens,
                  float* top_logprobs, Communicator* ranks = nullptr) noexcept;

private:
    struct Scored {
        double score;
        int id;
        bool before(const Scored& other) const { // more likely; of equal ones the lower id
            return score != other.score ? score > other.score : id < other.id;
        }
    };
    struct Merged { // what all threads, and ranks, found together
        Extremes logits, all; // among usable ids; among all
        Scored best;
    };
    struct Kept; // what filters leave
    struct Task; // a row, and what every thread derives of it
    struct alignas(64) Part { // what a thread found
        Extremes logits, padding; // among ids that are usable, and the others
        Scored best, drawn;       // by score, by score + noise
        int seen, listed;         // how many stand in `seen_` and in `list_`, from its first id on
    };

    static Kept smallest_set(Scored* first, Scored* last, double largest, std::uint64_t above, std::uint64_t needed);
    static void draw(const Task& task, const Kept& kept, const Scored* first, const Scored* last, Scored& drawn);

    const float* load(const Task& task, int block, float* copy) const;
    void scan(const Team& team, const Task& task);
    bool merge(const Team& team, Task& task, Communicator* ranks);
    template <class T> std::span<T> exchange(Communicator* ranks, T* own, std::size_t count, T* all) noexcept;
    float lower_limit(const Team& team, const Task& task, int count) const;
    template <class Does>
    void list_tokens(const Team& team, const Task& task, float low, float high, const Does& score_does);
    std::span<Scored> gather(const Team& team, const Task& task);
    std::int32_t choose_of_top_k(const Team& team, const Task& task, Communicator* ranks);
    Kept top_p(const Team& team, const Task& task, Communicator* ranks);
    void draw(const Team& team, const Task& task, const Kept& kept);

    const BlockKernels* kernels_ = &block_kernels();
    int width_ = 0, threads_ = 0;
    std::size_t listed_ = 0;
    std::unique_ptr<Part[]> parts_;         // by thread
    std::unique_ptr<float[]> largest_;      // by block, of the ids that are not in `seen_`
    std::unique_ptr<float[]> groups_;       // by thread and block: room for `lower_limit`
    std::unique_ptr<double[]> sums_;        // by block
    std::unique_ptr<std::uint64_t[]> mass_; // by thread and range
    // As long as the vocabulary, but only what is used is touched. `seen_` is in ascending order of ids.
    std::unique_ptr<Scored[]> seen_, list_;
    std::unique_ptr<Scored[]> all_; // lists of all ranks, behind each other
    Merged merged_{};
    Scored border_{}; // the last that top-p keeps
};

} // namespace anthesis
