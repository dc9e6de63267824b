#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace anthesis {

// What sampling does to a row of logits, by blocks of 64: a word of 64 bits says which of them were seen.
constexpr int kBlockIds = 64;

// Ranges of distances from the largest score whose masses are added up before one of them is looked into.
constexpr int kMassRanges = 2048;

// --- what program/draw.py computes of one token ----------------------------------------------------------------------

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15; // 2^64 divided by the golden ratio: the step of SplitMix64
constexpr double kMassUnit = 0x1p33;                  // the most likely token's mass
constexpr double kNoMass = 24;                        // from 23.6 on the mass rounds to 0
constexpr double kMostNoise = 36.75;                  // 53 ln 2 and a bit

// The output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
inline __attribute__((always_inline)) std::uint64_t mix(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
}

inline std::uint64_t token_hash(std::uint64_t key, int id) {
    return mix(key + (static_cast<std::uint64_t>(id) + 1) * kGolden);
}

// The standard Gumbel variate of a hash.
inline double gumbel_noise(std::uint64_t hash) {
    const double uniform = (static_cast<double>(hash >> 12) + 0.5) * 0x1p-52;
    return -std::log(-std::log(uniform));
}

// (1 - u) 2^52 of a hash: large noise comes from a small rest.
inline __attribute__((always_inline)) double uniform_rest(std::uint64_t hash) {
    // the bits of 2^52 with those of a number below it are their sum
    return std::bit_cast<double>((~hash >> 12) | 0x4330000000000000) - (0x1p52 - 0.5);
}

// No rest above this has noise of `least` or more; found without a logarithm, so that some below have a little less.
// -log(-log(u)) is at most -log(1 - u), and a number's bits, read as fixed point, are at most its binary logarithm.
inline double rest_limit(double least) {
    const double bits = 1023 + 52 - std::min(std::max(least, -1.0), 2 * kMostNoise) * 1.44269504088896341;
    return std::bit_cast<double>((static_cast<std::uint64_t>(bits * 0x1p40) + 1) << 12);
}

// The mass of a token whose score is this far below the largest.
inline std::uint64_t token_mass(double distance) {
    return static_cast<std::uint64_t>(std::rint(std::exp(-(distance < kNoMass ? distance : kNoMass)) * kMassUnit));
}

// --- floats as integers of the same order ----------------------------------------------------------------------------

// -0 comes before +0, NaN after +inf or before -inf by its sign.
inline __attribute__((always_inline)) std::int32_t order_of(float x) {
    const auto bits = std::bit_cast<std::int32_t>(x);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}
inline float of_order(std::int32_t order) { return std::bit_cast<float>(order ^ ((order >> 31) & 0x7fffffff)); }

// --- of a block ------------------------------------------------------------------------------------------------------

struct Extremes {
    std::int32_t largest, smallest; // as order_of says
};

// How scores are spread over the ranges.
struct Ranges {
    double temperature, largest; // score = logit / temperature; the largest score
    double span, per_unit;       // distances from `span` on are in the last range; ranges per unit of distance

    int of(double score) const {
        const double distance = std::max(0.0, largest - score); // limits are tried that no score of the row reaches
        return static_cast<int>((distance < span ? distance : span) * per_unit);
    }
};

struct BlockMasses {
    std::uint64_t mass[kBlockIds];
    std::int32_t range[kBlockIds];
};

// Of 64 logits at x. All variants give the same results.
struct BlockKernels {
    Extremes (*extremes)(const float* x);
    // The masses by `token_mass` and the ranges of these scores.
    void (*masses)(const float* x, const Ranges& ranges, BlockMasses& out);
    // How many of 64 ids, whose words before mixing start at `word`, have no more than this `uniform_rest`.
    int (*reach)(std::uint64_t word, double limit);
    // How many are from `low` up to, but not including, `high`.
    int (*count)(const float* x, float low, float high);
    // Sum of exp(logit - largest), to within 1e-14 of it.
    double (*exponentials)(const float* x, double largest);
};

// The fastest for this processor.
const BlockKernels& block_kernels();

} // namespace anthesis
