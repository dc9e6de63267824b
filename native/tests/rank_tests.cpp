// Ranks as threads: each with a team of its own, and with a mapping of its own of the memory that they share.

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include <unistd.h>

#include "checks.hpp"
#include "pool.hpp"
#include "sample.hpp"
#include "shared_communicator.hpp"

namespace anthesis {
namespace {

// Calls work(rank, communicator, pool) on every rank at once.
template <class Work> void on_ranks(int ranks, int threads, const Work& work) {
    const int fd = make_shared_memory(ranks);
    std::vector<std::unique_ptr<SharedCommunicator>> communicators;
    for (int rank = 0; rank < ranks; ++rank) communicators.push_back(std::make_unique<SharedCommunicator>(fd, rank, ranks));
    close(fd);
    std::vector<std::thread> members;
    for (int rank = 0; rank < ranks; ++rank)
        members.emplace_back([&, rank] {
            Pool pool(threads);
            work(rank, *communicators[static_cast<std::size_t>(rank)], pool);
        });
    for (std::thread& member : members) member.join();
}

} // namespace

void test_exchanges(int ranks, int threads) {
    constexpr std::size_t kMost = 150'000; // floats: more than two rooms
    std::vector<std::vector<float>> parts;
    for (int rank = 0; rank < ranks; ++rank) parts.push_back(normal(kMost));
    std::atomic<int> wrong = 0;
    on_ranks(ranks, threads, [&](int rank, SharedCommunicator& communicator, Pool& pool) {
        std::vector<float> out(kMost);
        for (int repeat = 0; repeat < 20; ++repeat)
            for (const std::size_t count : {std::size_t{1}, std::size_t{1000}, std::size_t{9000}, kMost}) {
                if (count == kMost && repeat % 10) continue;
                const float* own = parts[static_cast<std::size_t>(rank)].data();
                pool.run([&](int thread) { communicator.all_reduce({pool, thread}, own, out.data(), count); });
                for (std::size_t i = 0; i < count; ++i) {
                    float sum = parts[0][i];
                    for (int other = 1; other < ranks; ++other) sum += parts[static_cast<std::size_t>(other)][i];
                    wrong += sum != out[i];
                }
            }
        for (const std::size_t each : {std::size_t{0}, std::size_t{5}, std::size_t{300'000}}) {
            const std::vector<std::byte> mine((static_cast<std::size_t>(rank) + 1) * each, static_cast<std::byte>(rank + 7));
            const auto& found = communicator.all_gather(mine);
            wrong += found.size() != static_cast<std::size_t>(ranks);
            for (std::size_t other = 0; other < found.size(); ++other) {
                wrong += found[other].size() != (other + 1) * each;
                for (const std::byte byte : found[other]) wrong += byte != static_cast<std::byte>(other + 7);
            }
        }
        communicator.check();
    });
    check(wrong == 0, "every rank holds the sums and the parts of all");
}

// One rank ends while the others wait for it: they are told, and do not wait for ever.
void test_failing(int ranks) {
    if (ranks == 1) return;
    std::atomic<int> told = 0;
    const auto begin = std::chrono::steady_clock::now();
    on_ranks(ranks, 1, [&](int rank, SharedCommunicator& communicator, Pool& pool) {
        std::vector<float> x(100, 1.0f);
        if (rank == 0) {
            std::this_thread::sleep_for(std::chrono::milliseconds(20)); // the others sleep by then
            communicator.fail();
        } else {
            pool.run([&](int thread) { communicator.all_reduce({pool, thread}, x.data(), x.data(), x.size()); });
        }
        try {
            communicator.check();
        } catch (const std::runtime_error&) {
            ++told;
        }
        const std::byte mine[3] = {};
        check(communicator.all_gather(mine).size() == static_cast<std::size_t>(ranks), "later exchanges return at once");
    });
    check(told == ranks, "every rank knows that one has failed");
    check(std::chrono::steady_clock::now() - begin < std::chrono::seconds(5), "and soon");
}

// Tokens and their likeliest neighbours are those that one rank with all logits finds.
void test_sampling_over_ranks(int ranks, int threads) {
    for (const int vocab : {7, 1000, 1337}) {
        const int usable = vocab - 2;
        std::vector<float> logits = normal(static_cast<std::size_t>(vocab));
        for (float& logit : logits) logit *= 2;
        logits[1] = logits[static_cast<std::size_t>(usable) - 1] = logits[3]; // equal ones on different ranks
        if (vocab == 1000) logits[500] = -INFINITY;
        const std::vector<std::uint8_t> seen((static_cast<std::size_t>(vocab) + 7) / 8, 0x92);
        constexpr int kTop = 4;
        struct Found {
            std::int32_t token = -2, top[kTop] = {};
            float logprob = 0, top_logprobs[kTop] = {};
        };
        const auto with = [&](std::int32_t top_k, float top_p, float min_p, float penalty, float temperature, std::uint64_t seed) {
            return SampleRow{logits.data(), vocab, usable, temperature, top_p, min_p, penalty, top_k, seed, seen.data(), 9};
        };
        std::vector<SampleRow> rows;
        for (std::uint64_t seed = 0; seed < 5; ++seed)
            for (const float penalty : {1.0f, 1.5f})
                for (const float temperature : {0.0f, 1.3f})
                    for (const std::int32_t top_k : {0, 3, 60})
                        for (const float top_p : {1.0f, 0.7f}) rows.push_back(with(top_k, top_p, top_k == 0 ? 0.01f : 0, penalty, temperature, seed));
        const auto sample = [&](Sampler& sampler, Pool& pool, const SampleRow& row, Communicator* over) {
            Found found;
            pool.run([&](int thread) {
                const Team team{pool, thread};
                sampler.choose(team, row, found.token, over);
                sampler.logprobs(team, row, found.token, kTop, found.logprob, found.top, found.top_logprobs, over);
            });
            return found;
        };
        std::vector<Found> expected;
        Pool single(1);
        Sampler whole;
        whole.reserve(vocab, 1);
        for (const SampleRow& row : rows) expected.push_back(sample(whole, single, row, nullptr));
        on_ranks(ranks, threads, [&](int rank, SharedCommunicator& communicator, Pool& pool) {
            const int first = vocab * rank / ranks, last = vocab * (rank + 1) / ranks;
            Sampler sampler;
            sampler.reserve(last - first, threads, static_cast<std::size_t>(vocab + ranks));
            for (std::size_t i = 0; i < rows.size(); ++i) {
                SampleRow row = rows[i];
                row.logits = logits.data() + first;
                row.width = last - first;
                row.usable = std::max(0, std::min(last, usable) - first);
                row.first_id = first;
                row.all_usable = usable;
                row.vocab = vocab;
                const Found found = sample(sampler, pool, row, &communicator);
                check(found.token == expected[i].token, "the token that one rank draws");
                check(std::memcmp(found.top, expected[i].top, sizeof found.top) == 0, "the same likeliest tokens");
                check(std::abs(found.logprob - expected[i].logprob) < 1e-5f, "the same log-probability");
            }
        });
    }
}

} // namespace anthesis
