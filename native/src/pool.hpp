#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <sys/types.h>

namespace anthesis {

// A counter of its own cache line: threads that count on neighbours would take the line from each other.
struct alignas(64) Counter {
    std::atomic<int> value = 0;
};

// Threads that stay, and run one job after the other together with the caller.
//
// A thread that waits spins for a while (`spin_until`) and then sleeps.
class Pool {
public:
    // Throws std::system_error where there are no such threads.
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int size() const noexcept { return threads_; }

    // Calls job(0) on this thread and job(1) .. job(size - 1) on the others; returns when all are done. The job must not
    // throw. Callers of several threads wait for each other.
    //
    // Throws std::runtime_error in a process that was forked off: the other threads were not.
    template <class Job> void run(const Job& job) {
        run_erased([](const void* context, int thread) { (*static_cast<const Job*>(context))(thread); }, &job);
    }

    // Within a job: returns once every thread has called it. What a thread wrote before, all see after.
    void barrier() noexcept;

private:
    using Call = void (*)(const void* context, int thread);

    void run_erased(Call call, const void* context);
    void serve(int thread) noexcept;
    void stop() noexcept;

    int threads_;
    pid_t owner_;
    std::vector<std::thread> workers_;
    std::mutex turn_; // whose job it is
    Call call_ = nullptr;
    const void* context_ = nullptr;
    bool stopping_ = false;
    alignas(64) std::atomic<std::uint32_t> job_ = 0; // counts jobs; a worker starts when it changes
    alignas(64) std::atomic<std::uint32_t> passed_ = 0; // counts barriers that all threads have passed
    alignas(64) std::atomic<int> arrived_ = 0;
};

} // namespace anthesis
