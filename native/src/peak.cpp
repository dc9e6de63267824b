#include "peak.hpp"

#include <chrono>
#include <limits>
#include <numeric>
#include <vector>

#include "team.hpp"

namespace anthesis {

double multiply_add_peak(Pool& pool, const Kernels& kernels, Elements elements, double seconds) {
    if (!kernels.multiply_adds) return std::numeric_limits<double>::quiet_NaN();
    using Clock = std::chrono::steady_clock;
    constexpr long long kRounds = 20'000; // tens of microseconds, beside which reading the clock is nothing
    std::vector<double> rates(static_cast<std::size_t>(pool.size()));
    pool.run([&](int thread) {
        const auto since = [](Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); };
        kernels.multiply_adds(elements, kRounds);
        Team{pool, thread}.barrier();
        const Clock::time_point begin = Clock::now();
        double done = 0, took = 0;
        do {
            done += kernels.multiply_adds(elements, kRounds);
            took = since(begin);
        } while (took < seconds);
        rates[static_cast<std::size_t>(thread)] = done / took;
    });
    return std::accumulate(rates.begin(), rates.end(), 0.0);
}

} // namespace anthesis
