#pragma once

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

// What both files of native tests use: a check that ends the program, and random numbers.

namespace anthesis {

inline std::atomic<int> checks = 0;

inline void check(bool fine, const std::string& what) {
    ++checks;
    if (fine) return;
    std::fprintf(stderr, "failed: %s\n", what.c_str());
    std::exit(1);
}

inline std::mt19937 random_numbers(0);

inline std::vector<float> normal(std::size_t count) {
    std::normal_distribution<float> distribution;
    std::vector<float> values(count);
    for (float& value : values) value = distribution(random_numbers);
    return values;
}

// rank_tests.cpp
void test_exchanges(int ranks, int threads);
void test_failing(int ranks);
void test_sampling_over_ranks(int ranks, int threads);

} // namespace anthesis
