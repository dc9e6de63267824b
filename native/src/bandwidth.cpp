#include "bandwidth.hpp"

#include <algorithm>
#include <array>
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
constexpr std::size_t kAhead = 512; // words: a page
constexpr std::size_t kMinPasses = 3; // in each way
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

// Sums the words from the first to the last, asking for those some lines ahead, also beyond the end of a page, where the
// prefetcher stops: as kernels read weights.
inline __attribute__((always_inline)) std::uint64_t sum_ahead(Words words) {
    constexpr std::size_t kLine = 8, kLines = 4, kStep = kLine * kLines;
    const std::uint64_t* begin = words.data();
    std::uint64_t sums[kStep] = {}, sum = 0;
    const std::size_t whole = words.size() / kStep * kStep;
    for (std::size_t i = 0; i < whole; i += kStep) {
        for (std::size_t line = 0; line < kLines; ++line) {
            const std::size_t ahead = i + kAhead + line * kLine;
            __builtin_prefetch(begin + (ahead < words.size() ? ahead : i));
        }
        for (std::size_t j = 0; j < kStep; ++j) sums[j] += begin[i + j];
    }
    for (const std::uint64_t lane : sums) sum += lane;
    for (const std::uint64_t word : words.subspan(whole)) sum += word;
    return sum;
}

using Sum = std::uint64_t (*)(Words);
using Ways = std::array<Sum, 2>;

std::uint64_t streams_portable(Words words) { return sum_streams(words); }
std::uint64_t ahead_portable(Words words) { return sum_ahead(words); }

#if defined(__x86_64__)
#if defined(__clang__)
#define ANTHESIS_WIDE __attribute__((target("avx512f")))
#else
#define ANTHESIS_WIDE __attribute__((target("avx512f,prefer-vector-width=512")))
#endif
__attribute__((target("avx2"))) std::uint64_t streams_avx2(Words words) { return sum_streams(words); }
__attribute__((target("avx2"))) std::uint64_t ahead_avx2(Words words) { return sum_ahead(words); }
ANTHESIS_WIDE std::uint64_t streams_avx512(Words words) { return sum_streams(words); }
ANTHESIS_WIDE std::uint64_t ahead_avx512(Words words) { return sum_ahead(words); }
#endif

Ways ways() {
#if defined(__x86_64__)
    if (cpu_has("avx512f")) return {streams_avx512, ahead_avx512};
    if (cpu_has("avx2")) return {streams_avx2, ahead_avx2};
#endif
    return {streams_portable, ahead_portable};
}

// Part `index` of `parts` nearly equal ones.
std::span<std::uint64_t> part(std::span<std::uint64_t> words, std::size_t index, std::size_t parts) {
    const std::size_t begin = words.size() * index / parts;
    return words.subspan(begin, words.size() * (index + 1) / parts - begin);
}

double median(std::vector<double> values) {
    if (values.empty()) return 0;
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::ranges::nth_element(values, middle);
    return *middle;
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
        return median(samples_[0]) < median(samples_[1]) ? std::move(samples_[1]) : std::move(samples_[0]);
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
            samples_[way_].push_back(nbytes / elapsed);
            measured += elapsed;
            way_ = 1 - way_; // which the others see behind the gate
            stop_ = interrupted() || (samples_[1].size() >= kMinPasses && measured >= seconds);
        }
    }

    // The first write decides where a page lies: near the core that writes.
    void place(std::size_t index) { std::ranges::fill(part(words_, index, threads_), 1); }

    void read(std::size_t index) {
        const Words mine = part(words_, index, threads_);
        std::uint64_t sum = 0;
        for (std::size_t i = 0; i < repeats_; ++i) sum += ways_[way_](mine);
        // all words are 1; also keeps the sum from being optimised away
        if (sum != mine.size() * repeats_) wrong_ = true;
    }

    std::span<std::uint64_t> words_;
    std::size_t threads_;
    std::size_t repeats_ = (kMinPassBytes + words_.size_bytes() - 1) / words_.size_bytes(); // of the buffer in a pass
    Ways ways_ = ways();
    std::size_t way_ = 0;
    std::barrier<Stopwatch> gate_;
    std::atomic<Start> start_ = Start::waiting;
    std::atomic<bool> stop_ = false;
    std::atomic<bool> wrong_ = false;
    Clock::time_point previous_, now_;
    std::array<std::vector<double>, 2> samples_; // of each way
};

} // namespace

std::vector<double> read_bandwidth(std::size_t nbytes, int threads, double seconds,
                                   const std::function<bool()>& interrupted) {
    const Pages pages(nbytes);
    const std::span words(static_cast<std::uint64_t*>(pages.data()), nbytes / sizeof(std::uint64_t));
    return Readers(words, threads).run(seconds, interrupted);
}

} // namespace anthesis
