#include "handover.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <limits>
#include <stop_token>
#include <system_error>
#include <thread>

#include <pthread.h>
#include <sched.h>

#include "pool.hpp"

namespace anthesis {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kAverages = 32;
constexpr int kRoundTrips = 100; // of each, so that reading the clock is nothing beside them

// Two threads that write to one line in turns: odd numbers are the other's, even ones this one's.
class Rally {
public:
    void serve(const std::stop_token& end) noexcept {
        for (int next = 1;; next += 2) {
            while (ball_.value.load(std::memory_order_acquire) != next - 1)
                if (end.stop_requested()) return;
            ball_.value.store(next, std::memory_order_release);
        }
    }

    double least() noexcept {
        double least = std::numeric_limits<double>::infinity();
        int next = 0;
        const auto round_trip = [&] {
            ball_.value.store(next, std::memory_order_release);
            while (ball_.value.load(std::memory_order_acquire) != next + 1) {}
            next += 2;
        };
        round_trip(); // the other thread is there
        for (int i = 0; i < kAverages; ++i) {
            const Clock::time_point begin = Clock::now();
            for (int trip = 0; trip < kRoundTrips; ++trip) round_trip();
            least = std::min(least, std::chrono::duration<double>(Clock::now() - begin).count() / (2 * kRoundTrips));
        }
        return least;
    }

private:
    Counter ball_{-1};
};

void check(int error, const char* what) {
    if (error) throw std::system_error(error, std::generic_category(), what);
}

void pin(pthread_t thread, int core) {
    if (core < 0 || core >= CPU_SETSIZE) check(EINVAL, "no core has this number");
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    check(pthread_setaffinity_np(thread, sizeof one, &one), "a thread can't be bound to a core");
}

// Gives the calling thread its affinity back.
class Affinity {
public:
    Affinity() { check(pthread_getaffinity_np(pthread_self(), sizeof cores_, &cores_), "no affinity"); }
    ~Affinity() { pthread_setaffinity_np(pthread_self(), sizeof cores_, &cores_); }
    Affinity(const Affinity&) = delete;
    Affinity& operator=(const Affinity&) = delete;

private:
    cpu_set_t cores_;
};

} // namespace

double handover(int first_core, int second_core) {
    const Affinity before;
    Rally rally;
    std::jthread other([&rally](const std::stop_token& end) { rally.serve(end); });
    pin(other.native_handle(), second_core);
    pin(pthread_self(), first_core);
    return rally.least();
}

} // namespace anthesis
