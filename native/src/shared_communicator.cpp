#include "shared_communicator.hpp"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <stdexcept>
#include <system_error>

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#include "spin.hpp"

namespace anthesis {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kRoomBytes = 256 << 10; // two for each rank stay in a second-level cache
constexpr std::size_t kAloneFloats = 8192;    // up to here one thread is faster than two more barriers
constexpr std::uint64_t kMagic = 0x616e7468'73686d31;
constexpr long kLookNanoseconds = 50'000'000; // how often one who sleeps looks whether all is well

[[noreturn]] void throw_errno(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

// The futexes of the standard library are private to a process.
void sleep_while(std::atomic<std::uint32_t>& value, std::uint32_t old) noexcept {
#if defined(__linux__)
    const timespec limit{0, kLookNanoseconds};
    syscall(SYS_futex, &value, FUTEX_WAIT, old, &limit, nullptr, 0);
#else
    (void)value, (void)old;
    usleep(50);
#endif
}

void wake_all(std::atomic<std::uint32_t>& value) noexcept {
#if defined(__linux__)
    syscall(SYS_futex, &value, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
#else
    (void)value;
#endif
}

} // namespace

struct alignas(kLine) SharedCommunicator::Head {
    std::atomic<std::uint64_t> magic;
    std::atomic<std::uint32_t> size, failed;
};

// How far a rank is.
struct alignas(kLine) SharedCommunicator::Turn {
    std::atomic<std::uint32_t> number;
    std::atomic<std::uint32_t> sleepers; // who wait for it and have gone to sleep
};

namespace {

std::size_t memory_bytes(int ranks) { return kLine + static_cast<std::size_t>(ranks) * (kLine + 2 * kRoomBytes); }

} // namespace

int make_shared_memory(int ranks) {
#if defined(__linux__)
    const int fd = memfd_create("anthesis-exchange", MFD_CLOEXEC);
    if (fd < 0) throw_errno("memory that ranks share");
    if (ftruncate(fd, static_cast<off_t>(memory_bytes(ranks))) != 0) {
        const int error = errno;
        close(fd);
        errno = error;
        throw_errno("memory that ranks share");
    }
    return fd;
#else
    (void)ranks;
    throw std::system_error(ENOSYS, std::generic_category(), "memory that ranks share");
#endif
}

SharedCommunicator::SharedCommunicator(int fd, int rank, int size)
    : rank_(rank), size_(size), nbytes_(memory_bytes(size)), gathered_(static_cast<std::size_t>(size)) {
    if (rank < 0 || rank >= size) throw std::invalid_argument("no such rank");
    struct stat found {};
    if (fstat(fd, &found) != 0) throw_errno("memory that ranks share");
    if (static_cast<std::size_t>(found.st_size) != nbytes_) throw std::invalid_argument("memory of another number of ranks");
    void* at = mmap(nullptr, nbytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) throw_errno("memory that ranks share");
    memory_ = static_cast<std::byte*>(at);
    Head& head = *reinterpret_cast<Head*>(memory_);
    std::uint64_t unset = 0;
    if (!head.magic.compare_exchange_strong(unset, kMagic) && unset != kMagic) {
        munmap(at, nbytes_);
        throw std::invalid_argument("memory of something else");
    }
}

SharedCommunicator::~SharedCommunicator() { munmap(memory_, nbytes_); }

SharedCommunicator::Turn& SharedCommunicator::turn_of(int rank) const noexcept {
    return *reinterpret_cast<Turn*>(memory_ + kLine * (1 + static_cast<std::size_t>(rank)));
}

std::byte* SharedCommunicator::room(int rank, std::uint32_t number) const noexcept {
    const std::size_t index = 2 * static_cast<std::size_t>(rank) + number % 2;
    return memory_ + kLine * (1 + static_cast<std::size_t>(size_)) + index * kRoomBytes;
}

bool SharedCommunicator::failed() const noexcept {
    return reinterpret_cast<Head*>(memory_)->failed.load(std::memory_order_acquire) != 0;
}

void SharedCommunicator::fail() noexcept {
    reinterpret_cast<Head*>(memory_)->failed.store(1, std::memory_order_seq_cst);
    for (int rank = 0; rank < size_; ++rank) wake_all(turn_of(rank).number);
}

void SharedCommunicator::check() {
    if (failed()) throw std::runtime_error("another rank has ended");
}

// Returns when the rank has begun this exchange, or false when there is no use in waiting.
bool SharedCommunicator::wait_for(int rank, std::uint32_t number) noexcept {
    Turn& turn = turn_of(rank);
    std::uint32_t seen = 0;
    const auto there_by = [&](std::memory_order order) {
        seen = turn.number.load(order);
        return static_cast<std::int32_t>(seen - number) >= 0;
    };
    if (spin_until([&] { return there_by(std::memory_order_acquire); })) return true;
    // In this order, and the other one in `meet`, with sequential consistency: either this one sees the number, or is seen.
    turn.sleepers.fetch_add(1, std::memory_order_seq_cst);
    while (!there_by(std::memory_order_seq_cst) && !failed()) sleep_while(turn.number, seen);
    turn.sleepers.fetch_sub(1, std::memory_order_relaxed);
    return there_by(std::memory_order_acquire);
}

// Says that this rank's part is there, and waits for those of the others.
void SharedCommunicator::meet(std::uint32_t number) noexcept {
    Turn& own = turn_of(rank_);
    own.number.store(number, std::memory_order_seq_cst);
    if (own.sleepers.load(std::memory_order_seq_cst) != 0) wake_all(own.number);
    for (int i = 1; i < size_ && !failed(); ++i) wait_for((rank_ + i) % size_, number);
    number_ = number;
}

void SharedCommunicator::add(std::uint32_t number, float* out, std::size_t first, std::size_t last) const noexcept {
    const auto part = [&](int rank) { return reinterpret_cast<const float*>(room(rank, number)); };
    if (size_ == 1) {
        std::copy(part(0) + first, part(0) + last, out + first);
        return;
    }
    const float *a = part(0), *b = part(1);
    for (std::size_t i = first; i < last; ++i) out[i] = a[i] + b[i];
    for (int rank = 2; rank < size_; ++rank) {
        const float* next = part(rank);
        for (std::size_t i = first; i < last; ++i) out[i] += next[i];
    }
}

void SharedCommunicator::all_reduce(const Team& team, const float* x, float* out, std::size_t count) noexcept {
    constexpr std::size_t kRoomFloats = kRoomBytes / sizeof(float);
    const bool alone = team.size() == 1 || count <= kAloneFloats;
    if (alone && team.thread != 0) return;
    for (std::size_t at = 0; at < count; at += kRoomFloats) {
        const std::size_t here = std::min(kRoomFloats, count - at);
        const std::uint32_t number = number_ + 1; // thread 0 counts on between the barriers
        auto* own = reinterpret_cast<float*>(room(rank_, number));
        if (alone) {
            std::copy(x + at, x + at + here, own);
            meet(number);
            add(number, out + at, 0, here);
            continue;
        }
        const auto [first, last] = team.share(static_cast<int>(here));
        std::copy(x + at + first, x + at + last, own + first);
        team.barrier();
        if (team.thread == 0) meet(number);
        team.barrier();
        add(number, out + at, static_cast<std::size_t>(first), static_cast<std::size_t>(last));
    }
}

const Communicator::Parts& SharedCommunicator::all_gather(std::span<const std::byte> mine) noexcept {
    constexpr std::size_t kHeader = sizeof(std::uint64_t); // how many bytes a rank brings in all
    constexpr std::size_t kRoom = kRoomBytes - kHeader;
    for (auto& part : gathered_) part.clear();
    std::size_t most = mine.size();
    for (std::size_t at = 0; at < most || at == 0; at += kRoom) {
        const std::uint32_t number = number_ + 1;
        std::byte* own = room(rank_, number);
        const std::uint64_t size = mine.size();
        std::memcpy(own, &size, kHeader);
        if (at < mine.size()) std::memcpy(own + kHeader, mine.data() + at, std::min(kRoom, mine.size() - at));
        meet(number);
        if (failed()) break;
        for (int rank = 0; rank < size_; ++rank) {
            const std::byte* part = room(rank, number);
            std::uint64_t theirs = 0;
            std::memcpy(&theirs, part, kHeader);
            most = std::max<std::size_t>(most, theirs);
            if (at < theirs) {
                std::vector<std::byte>& to = gathered_[static_cast<std::size_t>(rank)];
                to.insert(to.end(), part + kHeader, part + kHeader + std::min<std::size_t>(kRoom, theirs - at));
            }
        }
    }
    const bool broken = failed(); // all parts or none: they must not be more together than anyone has room for
    parts_.clear();
    for (const auto& part : gathered_) parts_.push_back(broken ? mine : std::span<const std::byte>(part));
    return parts_;
}

} // namespace anthesis
