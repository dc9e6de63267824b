#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "team.hpp"

namespace anthesis {

// What the ranks of a model that is split exchange within a step. All ranks call the same methods in the same order.
//
// Once an exchange has failed, that one and all later ones return at once, with nothing of worth: a step runs to its end, and
// `check` says afterwards what happened.
class Communicator {
public:
    virtual ~Communicator() = default;
    virtual int rank() const noexcept = 0;
    virtual int size() const noexcept = 0;

    // Called by every thread of the team: out = the sum of x over the ranks, added in rank order, so that all of them hold the
    // same bits. `out` may be `x`. It is complete after the team's next barrier.
    virtual void all_reduce(const Team& team, const float* x, float* out, std::size_t count) noexcept = 0;

    // Called by one thread: what each rank brings, in rank order; they may bring different amounts. Valid until the next call.
    // Each rank's own, once for every rank, where it fails.
    using Parts = std::vector<std::span<const std::byte>>;
    virtual const Parts& all_gather(std::span<const std::byte> mine) noexcept = 0;

    // Throws what an exchange failed by.
    virtual void check() = 0;
};

// As many of the same thing, of every rank.
template <class T> std::span<const T> as_things(std::span<const std::byte> part) {
    return {reinterpret_cast<const T*>(part.data()), part.size() / sizeof(T)};
}
template <class T> std::span<const std::byte> as_bytes_of(const T* things, std::size_t count) {
    return {reinterpret_cast<const std::byte*>(things), count * sizeof(T)};
}

} // namespace anthesis
