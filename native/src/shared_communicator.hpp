#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "communicator.hpp"

namespace anthesis {

// A file descriptor of memory for the exchanges of so many ranks. It has no name, and goes with the last process that holds it:
// nothing is left behind however a rank ends. Throws std::system_error.
int make_shared_memory(int ranks);

// Exchanges between processes of one machine, over memory that they share.
//
// Each rank has two rooms to write to. For exchange number n it writes to the room n % 2, says so, waits for the others, and reads
// theirs. It writes to the same room again for n + 2, which it begins when all have said that they are at n + 1, and so have read
// what was there: so one wait in each exchange is enough.
class SharedCommunicator final : public Communicator {
public:
    // `fd`: made by `make_shared_memory(size)`, possibly by another process. Throws std::system_error, and std::invalid_argument
    // where it is memory of something else.
    SharedCommunicator(int fd, int rank, int size);
    ~SharedCommunicator() override;

    int rank() const noexcept override { return rank_; }
    int size() const noexcept override { return size_; }
    void all_reduce(const Team& team, const float* x, float* out, std::size_t count) noexcept override;
    const Parts& all_gather(std::span<const std::byte> mine) noexcept override;
    // Throws std::runtime_error.
    void check() override;

    // By any thread: makes the exchanges of all ranks fail, those in progress too.
    void fail() noexcept;
    bool failed() const noexcept;

private:
    struct Head;
    struct Turn;

    Turn& turn_of(int rank) const noexcept;
    std::byte* room(int rank, std::uint32_t number) const noexcept;
    void meet(std::uint32_t number) noexcept;
    bool wait_for(int rank, std::uint32_t number) noexcept;
    void add(std::uint32_t number, float* out, std::size_t first, std::size_t last) const noexcept;

    int rank_, size_;
    std::size_t nbytes_ = 0;
    std::byte* memory_ = nullptr;
    std::uint32_t number_ = 0; // of the last exchange
    std::vector<std::vector<std::byte>> gathered_;
    Parts parts_;
};

} // namespace anthesis
