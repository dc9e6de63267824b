#include "sample_blocks.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#include "cpu_features.hpp"

#define INLINE inline __attribute__((always_inline))

namespace anthesis {
namespace {

// The loops below are written for the compiler to vectorise: of equal length, without branches, sums of integers.

INLINE Extremes extremes(const float* x) {
    std::int32_t largest = order_of(x[0]), smallest = largest;
    for (int i = 0; i < kBlockIds; ++i) {
        const std::int32_t order = order_of(x[i]);
        largest = largest < order ? order : largest;
        smallest = order < smallest ? order : smallest;
    }
    return {largest, smallest};
}

// The relative error of `exponential` is below half of this.
constexpr double kDoubt = 2e-14;

// e^-x for x from 0 to 700: 2^n times the series of e^r, |r| <= ln 2 / 2.
INLINE double exponential(double x) {
    constexpr double kRound = 0x1.8p52; // a sum with it ends in the rounded integer
    const double shifted = kRound - x * 1.44269504088896341;
    const double n = shifted - kRound;
    const double r = (-x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33; // ln 2 in two parts, the first a short one
    // By pairs, pairs of pairs and so on: in a chain of sums each would wait for the one before.
    const double r2 = r * r, r4 = r2 * r2;
    const double first = (1 + r) + (0.5 + r * (1.0 / 6)) * r2;
    const double second = (1.0 / 24 + r * (1.0 / 120)) + (1.0 / 720 + r * (1.0 / 5040)) * r2;
    const double third = (1.0 / 40320 + r * (1.0 / 362880)) + (1.0 / 3628800 + r * (1.0 / 39916800)) * r2;
    const double p = first + r4 * (second + r4 * third);
    return std::bit_cast<double>(std::bit_cast<std::uint64_t>(p) + (std::bit_cast<std::uint64_t>(shifted) << 52));
}

// Rounds as rint does, for x from 0 to 2^52.
INLINE std::uint64_t rounded(double x) { return std::bit_cast<std::uint64_t>(x + 0x1p52) & 0xfffffffffffff; }

INLINE void masses(const float* x, const Ranges& ranges, BlockMasses& out) {
    const double temperature = ranges.temperature, largest = ranges.largest, span = ranges.span;
    const double per_unit = ranges.per_unit;
    std::uint64_t doubtful = 0;
    double distances[kBlockIds];
    for (int i = 0; i < kBlockIds; ++i) {
        const double distance = largest - x[i] / temperature;
        distances[i] = distance < kNoMass ? distance : kNoMass;
        out.range[i] = static_cast<std::int32_t>((distance < span ? distance : span) * per_unit);
    }
    for (int i = 0; i < kBlockIds; ++i) {
        const double mass = exponential(distances[i]) * kMassUnit;
        const std::uint64_t low = rounded(mass * (1 - kDoubt)), high = rounded(mass * (1 + kDoubt));
        out.mass[i] = low;
        doubtful |= low ^ high;
    }
    if (doubtful == 0) return;
    for (int i = 0; i < kBlockIds; ++i) out.mass[i] = token_mass(distances[i]);
}

constexpr std::array<std::uint64_t, kBlockIds> kSteps = [] {
    std::array<std::uint64_t, kBlockIds> steps{};
    for (int i = 0; i < kBlockIds; ++i) steps[i] = i * kGolden;
    return steps;
}();

INLINE int reach(std::uint64_t word, double limit) {
    std::int64_t number = 0;
    for (int i = 0; i < kBlockIds; ++i) number += uniform_rest(mix(word + kSteps[i])) <= limit ? 1 : 0;
    return static_cast<int>(number);
}

INLINE int count(const float* x, float low, float high) {
    int number = 0;
    for (int i = 0; i < kBlockIds; ++i) number += (x[i] >= low) & (x[i] < high);
    return number;
}

INLINE double exponentials(const float* x, double largest) {
    double terms[kBlockIds], sums[8] = {};
    // A loop of its own: in one with `exponential` the choice becomes a branch.
    for (int i = 0; i < kBlockIds; ++i) terms[i] = largest - x[i] < 700 ? largest - x[i] : 700;
    for (int i = 0; i < kBlockIds; ++i) terms[i] = exponential(terms[i]);
    for (int i = 0; i < kBlockIds; i += 8)
        for (int j = 0; j < 8; ++j) sums[j] += terms[i + j];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

#define ANTHESIS_BLOCK_KERNELS(name, attribute)                                                                        \
    attribute Extremes extremes_##name(const float* x) { return extremes(x); }                                         \
    attribute void masses_##name(const float* x, const Ranges& r, BlockMasses& out) { masses(x, r, out); }             \
    attribute int reach_##name(std::uint64_t word, double limit) { return reach(word, limit); }                        \
    attribute int count_##name(const float* x, float low, float high) { return count(x, low, high); }                  \
    attribute double exponentials_##name(const float* x, double largest) { return exponentials(x, largest); }          \
    constexpr BlockKernels k_##name = {extremes_##name, masses_##name, reach_##name, count_##name, exponentials_##name};

ANTHESIS_BLOCK_KERNELS(portable, )
#if defined(__x86_64__)
ANTHESIS_BLOCK_KERNELS(avx2, __attribute__((target("avx2"))))
#endif

} // namespace

const BlockKernels& block_kernels() {
#if defined(__x86_64__)
    const char* wanted = std::getenv("ANTHESIS_CPU_KERNELS"); // as for the other kernels
    const bool portable = wanted && std::strcmp(wanted, "portable") == 0;
    if (!portable && cpu_has("avx2")) return k_avx2;
#endif
    return k_portable;
}

} // namespace anthesis
