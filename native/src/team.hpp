#pragma once

#include "pool.hpp"

namespace anthesis {

// The threads that work on a step, as one of them sees it.
struct Team {
    Pool& pool;
    int thread;

    int size() const noexcept { return pool.size(); }
    // As the `i`th thread after this one sees it; itself for 0.
    Team other(int i) const noexcept { return {pool, (thread + i) % size()}; }
    void barrier() const noexcept { pool.barrier(); }

    // This thread's part of `count` things: from `first` up to `last`.
    struct Range {
        int first, last;
    };
    Range share(int count) const noexcept {
        const auto border = [&](int part) { return static_cast<int>(static_cast<long long>(count) * part / size()); };
        return {border(thread), border(thread + 1)};
    }
};

} // namespace anthesis
