#include "pool.hpp"

#include <csignal>
#include <stdexcept>

#include <unistd.h>

#include "spin.hpp"

namespace anthesis {
namespace {

// Returns once the value is no longer `old`. Who changes it must do so with sequential consistency before notifying:
// libstdc++ wakes nobody where it sees nobody waiting, and a processor may look before its change is seen by one who is just
// going to sleep, who then sleeps for ever.
void wait_for_change(const std::atomic<std::uint32_t>& value, std::uint32_t old) noexcept {
    const auto changed = [&] { return value.load(std::memory_order_acquire) != old; };
    if (!spin_until(changed)) value.wait(old, std::memory_order_acquire);
}

} // namespace

Pool::Pool(int threads) : threads_(threads), owner_(getpid()) {
    if (threads < 1) throw std::invalid_argument("a pool has at least one thread");
    workers_.reserve(static_cast<std::size_t>(threads));
    try {
        for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { serve(thread); });
    } catch (...) {
        stop();
        throw;
    }
}

Pool::~Pool() {
    if (getpid() == owner_) {
        stop();
    } else {
        // The threads are the parent's; the objects that name them can be neither joined nor destroyed here.
        new std::vector<std::thread>(std::move(workers_));
    }
}

void Pool::stop() noexcept {
    stopping_ = true;
    job_.fetch_add(1, std::memory_order_seq_cst);
    job_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Pool::run_erased(Call call, const void* context) {
    if (getpid() != owner_)
        throw std::runtime_error("this process was forked after the model was opened, and its threads stayed behind; "
                                 "open the model in the process that uses it");
    const std::lock_guard turn(turn_);
    if (threads_ > 1) {
        call_ = call;
        context_ = context;
        job_.fetch_add(1, std::memory_order_seq_cst);
        job_.notify_all();
    }
    call(context, 0);
    barrier();
}

void Pool::serve(int thread) noexcept {
    // Signals are for the thread that waits for them: here one would only be late.
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    std::uint32_t seen = 0;
    while (true) {
        wait_for_change(job_, seen);
        ++seen;
        if (stopping_) return;
        call_(context_, thread);
        barrier();
    }
}

void Pool::barrier() noexcept {
    if (threads_ == 1) return;
    const std::uint32_t passed = passed_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
        arrived_.store(0, std::memory_order_relaxed);
        passed_.store(passed + 1, std::memory_order_seq_cst);
        passed_.notify_all();
    } else {
        wait_for_change(passed_, passed);
    }
}

} // namespace anthesis
