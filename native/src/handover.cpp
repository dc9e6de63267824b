#include "handover.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <system_error>
#include <thread>

#include <pthread.h>
#include <sched.h>

namespace anthesis {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kAverages = 32;
constexpr int kRoundTrips = 100; // of each, so that reading the clock is nothing beside them

// Two threads that write to one line in turns: even numbers are this one's, odd ones the other's.
class Rally {
public:
    void serve() noexcept {
        for (int next = 1;; next += 2) {
            if (!wait_for(next - 1)) return;
            ball_.store(next, std::memory_order_release);
        }
    }

    double least() noexcept {
        double least = std::numeric_limits<double>::infinity();
        int next = 0;
        const auto round_trip = [&] {
            wait_for(next + 1);
            next += 2;
            ball_.store(next, std::memory_order_release);
        };
        ball_.store(next, std::memory_order_release);
        round_trip(); // the other thread is there
        for (int i = 0; i < kAverages; ++i) {
            const Clock::time_point begin = Clock::now();
            for (int trip = 0; trip < kRoundTrips; ++trip) round_trip();
            least = std::min(least, std::chrono::duration<double>(Clock::now() - begin).count() / (2 * kRoundTrips));
        }
        return least;
    }

    void end() noexcept { ended_.store(true, std::memory_order_relaxed); }

private:
    bool wait_for(int number) const noexcept {
        while (ball_.load(std::memory_order_acquire) != number)
            if (ended_.load(std::memory_order_relaxed)) return false;
        return true;
    }

    alignas(64) std::atomic<int> ball_ = -1;
    alignas(64) std::atomic<bool> ended_ = false;
};

// std::jthread joins; before that the loop it runs has to be told.
class Player {
public:
    explicit Player(Rally& rally) : rally_(rally), thread_([&rally] { rally.serve(); }) {}
    ~Player() { rally_.end(); }
    pthread_t handle() { return thread_.native_handle(); }

private:
    Rally& rally_;
    std::jthread thread_;
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
    Player other(rally);
    pin(other.handle(), second_core);
    pin(pthread_self(), first_core);
    return rally.least();
}

} // namespace anthesis
