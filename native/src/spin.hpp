#pragma once

#include <chrono>

#include <sched.h>

namespace anthesis {

inline void pause_briefly() noexcept {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Looks again and again, for half a millisecond, whether what is waited for has come; whether it has. That is longer than the
// gaps within a step and the gap between two steps of a small model; to go on would keep the thread that is waited for from
// running, on a machine with other work, or with more threads than cores.
template <class Done> bool spin_until(const Done& done) noexcept {
    using Clock = std::chrono::steady_clock;
    constexpr auto kSpin = std::chrono::microseconds(500);
    constexpr int kPausesPerLook = 32;                     // reading the clock costs as much as a pause or two
    const auto look = [&] {
        for (int i = 0; i < kPausesPerLook; ++i) {
            if (done()) return true;
            pause_briefly();
        }
        return false;
    };
    if (look()) return true;
    const auto end = Clock::now() + kSpin;
    do {
        if (look()) return true;
        sched_yield(); // the thread that is waited for may have been put on this very core
    } while (Clock::now() < end);
    return false;
}

} // namespace anthesis
