// sample: the operation of program/sample.py on the threads of a pool of its own.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <stdexcept>

#include "sample.hpp"

namespace nb = nanobind;

namespace {

template <class T> using Column = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T> using Table = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
// Rows may lie anywhere, also all at one place.
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;

// Writes token, and unless logprob is empty the log-probabilities too.
void sample(Rows logits, Column<const std::int32_t> positions, Column<const float> temperature,
            Column<const std::int32_t> top_k, Column<const float> top_p, Column<const float> min_p,
            Column<const float> repetition_penalty, Column<const std::uint64_t> seed, Table<const std::uint8_t> seen,
            int usable, int threads, Column<std::int32_t> token, Column<float> logprob, Table<std::int32_t> top_tokens,
            Table<float> top_logprobs) {
    const std::size_t rows = logits.shape(0), vocab = logits.shape(1);
    const bool same_rows = positions.size() == rows && temperature.size() == rows && top_k.size() == rows &&
                           top_p.size() == rows && min_p.size() == rows && repetition_penalty.size() == rows &&
                           seed.size() == rows && seen.shape(0) == rows && token.size() == rows;
    const bool reports = logprob.size() != 0;
    const std::size_t top = reports ? top_tokens.shape(1) : 0;
    const bool right_reports = !reports || (logprob.size() == rows && top_tokens.shape(0) == rows &&
                                            top_logprobs.shape(0) == rows && top_logprobs.shape(1) == top);
    if (!same_rows || !right_reports) throw std::invalid_argument("sample: arrays of different numbers of rows");
    if (usable < 1 || vocab > (1u << 30) || static_cast<std::size_t>(usable) > vocab || top > std::size_t(usable))
        throw std::invalid_argument("sample: more tokens than there are");
    if (seen.shape(1) != (vocab + 7) / 8) throw std::invalid_argument("sample: `seen` has not a bit for each token");
    if (vocab > 1 && logits.stride(1) != 1) throw std::invalid_argument("sample: rows of logits with gaps");
    if (threads < 1) throw std::invalid_argument("sample: no threads");
    nb::gil_scoped_release released;
    anthesis::Pool pool(threads);
    anthesis::Sampler sampler;
    sampler.reserve(static_cast<int>(vocab), threads);
    pool.run([&](int thread) {
        const anthesis::Team team{pool, thread};
        for (std::size_t i = 0; i < rows; ++i) {
            const float* row = logits.data() + static_cast<std::int64_t>(i) * logits.stride(0);
            const anthesis::SampleRow sampled{.logits = row,
                                              .width = static_cast<int>(vocab),
                                              .usable = usable,
                                              .temperature = temperature(i),
                                              .top_p = top_p(i),
                                              .min_p = min_p(i),
                                              .repetition_penalty = repetition_penalty(i),
                                              .top_k = top_k(i),
                                              .seed = seed(i),
                                              .seen = seen.data() + i * seen.shape(1),
                                              .position = positions(i)};
            sampler.choose(team, sampled, token(i));
            if (reports)
                sampler.logprobs(team, sampled, token(i), static_cast<int>(top), logprob(i), top_tokens.data() + i * top,
                                 top_logprobs.data() + i * top);
        }
    });
}

} // namespace

void bind_sample(nb::module_& m) {
    m.def("sample", &sample, nb::arg("logits"), nb::arg("positions"), nb::arg("temperature"), nb::arg("top_k"),
          nb::arg("top_p"), nb::arg("min_p"), nb::arg("repetition_penalty"), nb::arg("seed"), nb::arg("seen"),
          nb::arg("usable"), nb::arg("threads"), nb::arg("token").noconvert(), nb::arg("logprob").noconvert(),
          nb::arg("top_tokens").noconvert(), nb::arg("top_logprobs").noconvert());
}
