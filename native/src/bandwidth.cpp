#include "bandwidth.hpp"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <thread>

#include "cpu_features.hpp"
#include "pages.hpp"

namespace anthesis {
namespace {

using Clock = std::chrono::steady_clock;
using Words = std::span<const std::uint64_t>;

constexpr std::size_t kStreams = 4;
constexpr std::size_t kMinPasses = 3;
constexpr std::size_t kMinPassBytes = std::size_t{64} << 20; // so that starting together is no part of the time

// Sums the words. Several places of the buffer are read side by side, because the prefetcher follows several streams
// and one alone leaves requests to memory unused. Adding integers lets the compiler vectorise and reorder freely.
inline __attribute__((always_inline)) std::uint64_t sum_streams(Words words) {
    const std::size_t length = words.size() / kStreams;
    const std::uint64_t *a = words.data(), *b = a + length, *c = b + length, *d = c + length;
    std::uint64_t sum_a = 0, sum_b = 0, sum_c = 0, sum_d = 0;
    for (std::size_t i = 0; i < length; ++i) {
        sum_a += a[i];
        sum_b += b[i];
        sum_c += c[i];
        sum_d += d[i];
    }
    for (const std::uint64_t word : words.subspan(length * kStreams)) sum_a += word;
    return sum_a + sum_b + sum_c + sum_d;
}

std::uint64_t sum_portable(Words words) { return sum_streams(words); }

#if defined(__x86_64__)
__attribute__((target("avx2"))) std::uint64_t sum_avx2(Words words) { return sum_streams(words); }
#if defined(__clang__)
__attribute__((target("avx512f"))) std::uint64_t sum_avx512(Words words) { return sum_streams(words); }
#else
__attribute__((target("avx512f,prefer-vector-width=512"))) std::uint64_t sum_avx512(Words words) {
    return sum_streams(words);
}
#endif
#endif

using Sum = std::uint64_t (*)(Words);

Sum fastest_sum() {
#if defined(__x86_64__)
    if (cpu_has("avx512f")) return sum_avx512;
    if (cpu_has("avx2")) return sum_avx2;
#endif
    return sum_portable;
}

// Part `index` of `parts` nearly equal ones.
std::span<std::uint64_t> part(std::span<std::uint64_t> words, std::size_t index, std::size_t parts) {
    const std::size_t begin = words.size() * index / parts;
    return words.subspan(begin, words.size() * (index + 1) / parts - begin);
}

// The readers: a fixed set of threads that read their parts pass by pass, all starting at the same moment.
class Readers {
public:
    Readers(std::span<std::uint64_t> words, int threads)
        : words_(words), threads_(static_cast<std::size_t>(threads)), gate_(threads, Stopwatch{this}) {}

    std::vector<double> run(double seconds, const std::function<bool()>& interrupted) {
        {
            std::vector<std::jthread> others;
            try {
                for (std::size_t i = 1; i < threads_; ++i) others.emplace_back([this, i] { follow(i); });
            } catch (...) { // too few threads came: let those that wait at the start go home
                release(Start::abandoned);
                throw;
            }
            release(Start::go);
            lead(seconds, interrupted);
        }
        if (wrong_) throw std::logic_error("the bandwidth measurement did not read what was written");
        return std::move(samples_);
    }

private:
    enum class Start { waiting, go, abandoned };

    // Runs once whenever all readers have arrived at the gate, before any goes on.
    struct Stopwatch {
        Readers* readers;
        void operator()() noexcept {
            readers->previous_ = readers->now_;
            readers->now_ = Clock::now();
        }
    };

    void release(Start how) {
        start_ = how;
        start_.notify_all();
    }

    void follow(std::size_t index) {
        start_.wait(Start::waiting);
        if (start_ == Start::abandoned) return;
        place(index);
        while (true) {
            gate_.arrive_and_wait();
            if (stop_) return;
            read(index);
            gate_.arrive_and_wait();
        }
    }

    // An exception here would leave the others at the gate for ever.
    void lead(double seconds, const std::function<bool()>& interrupted) noexcept {
        place(0);
        const double nbytes = static_cast<double>(words_.size_bytes() * repeats_);
        double measured = 0;
        while (true) {
            gate_.arrive_and_wait();
            if (stop_) return;
            read(0);
            gate_.arrive_and_wait();
            const double elapsed = std::chrono::duration<double>(now_ - previous_).count();
            samples_.push_back(nbytes / elapsed);
            measured += elapsed;
            stop_ = interrupted() || (samples_.size() >= kMinPasses && measured >= seconds);
        }
    }

    // The first write decides where a page lies: near the core that writes.
    void place(std::size_t index) { std::ranges::fill(part(words_, index, threads_), 1); }

    void read(std::size_t index) {
        const Words mine = part(words_, index, threads_);
        std::uint64_t sum = 0;
        for (std::size_t i = 0; i < repeats_; ++i) sum += sum_(mine);
        // all words are 1; also keeps the sum from being optimised away
        if (sum != mine.size() * repeats_) wrong_ = true;
    }

    std::span<std::uint64_t> words_;
    std::size_t threads_;
    std::size_t repeats_ = (kMinPassBytes + words_.size_bytes() - 1) / words_.size_bytes(); // of the buffer in a pass
    Sum sum_ = fastest_sum();
    std::barrier<Stopwatch> gate_;
    std::atomic<Start> start_ = Start::waiting;
    std::atomic<bool> stop_ = false;
    std::atomic<bool> wrong_ = false;
    Clock::time_point previous_, now_;
    std::vector<double> samples_;
};

} // namespace

std::vector<double> read_bandwidth(std::size_t nbytes, int threads, double seconds,
                                   const std::function<bool()>& interrupted) {
    const Pages pages(nbytes);
    const std::span words(static_cast<std::uint64_t*>(pages.data()), nbytes / sizeof(std::uint64_t));
    return Readers(words, threads).run(seconds, interrupted);
}

} // namespace anthesis
