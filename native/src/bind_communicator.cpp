// The Python face of what ranks exchange: memory that they share, and exchanges that Python makes.

#include "bind_communicator.hpp"

#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include "shared_communicator.hpp"

namespace nb = nanobind;

namespace anthesis {
namespace {

using Floats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Exchanges by a Python object, between machines: `all_reduce(x)`, in place, and `all_gather(mine)`, which gives bytes of each rank.
// The thread that runs the step holds the interpreter for as long as each of them takes.
class CalledCommunicator final : public Communicator {
public:
    explicit CalledCommunicator(nb::object object)
        : object_(std::move(object)), rank_(nb::cast<int>(object_.attr("rank"))), size_(nb::cast<int>(object_.attr("size"))) {}

    int rank() const noexcept override { return rank_; }
    int size() const noexcept override { return size_; }

    void all_reduce(const Team& team, const float* x, float* out, std::size_t count) noexcept override {
        if (team.thread != 0) return;
        if (x != out) std::memcpy(out, x, count * sizeof(float));
        call([&] {
            const nb::ndarray<nb::numpy, float, nb::ndim<1>> sum(out, {count}, nb::handle());
            object_.attr("all_reduce")(nb::cast(sum, nb::rv_policy::reference)); // else it is given a copy
        });
    }

    const Parts& all_gather(std::span<const std::byte> mine) noexcept override {
        parts_.assign(static_cast<std::size_t>(size_), mine);
        call([&] {
            const nb::ndarray<nb::numpy, const std::uint8_t, nb::ndim<1>> own(mine.data(), {mine.size()}, nb::handle());
            const auto found = nb::cast<std::vector<nb::bytes>>(
                object_.attr("all_gather")(nb::cast(own, nb::rv_policy::reference)));
            gathered_.clear();
            for (const nb::bytes& part : found) {
                const auto* data = reinterpret_cast<const std::byte*>(part.c_str());
                gathered_.emplace_back(data, data + part.size());
            }
            for (std::size_t i = 0; i < parts_.size(); ++i) parts_[i] = gathered_.at(i);
        });
        return parts_;
    }

    void check() override {
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr)); // a Python error can be raised once
        if (failed_) throw std::runtime_error("an earlier exchange has failed");
    }

private:
    template <class Work> void call(const Work& work) noexcept {
        if (failed_) return;
        nb::gil_scoped_acquire held;
        try {
            work();
        } catch (...) {
            failed_ = true;
            error_ = std::current_exception();
        }
    }

    nb::object object_;
    int rank_, size_;
    bool failed_ = false;
    std::exception_ptr error_;
    std::vector<std::vector<std::byte>> gathered_;
    Parts parts_;
};

void all_reduce(SharedCommunicator& self, const Floats& x) {
    Pool pool(1);
    {
        nb::gil_scoped_release released;
        pool.run([&](int thread) { self.all_reduce({pool, thread}, x.data(), x.data(), x.size()); });
    }
    self.check();
}

std::vector<nb::bytes> all_gather(SharedCommunicator& self, const Bytes& mine) {
    const Communicator::Parts* parts = nullptr;
    {
        nb::gil_scoped_release released;
        parts = &self.all_gather({reinterpret_cast<const std::byte*>(mine.data()), mine.size()});
    }
    self.check();
    std::vector<nb::bytes> found;
    for (const auto part : *parts) found.emplace_back(reinterpret_cast<const char*>(part.data()), part.size());
    return found;
}

} // namespace

std::shared_ptr<Communicator> communicator_of(const nb::object& ranks) {
    if (ranks.is_none()) return nullptr;
    if (nb::isinstance<SharedCommunicator>(ranks)) return nb::cast<std::shared_ptr<SharedCommunicator>>(ranks);
    return std::make_shared<CalledCommunicator>(ranks);
}

void bind_communicator(nb::module_& m) {
    m.def("make_shared_memory", &make_shared_memory, nb::arg("ranks"));
    nb::class_<SharedCommunicator>(m, "SharedCommunicator")
        .def(nb::init<int, int, int>(), nb::arg("fd"), nb::arg("rank"), nb::arg("size"))
        .def_prop_ro("rank", &SharedCommunicator::rank)
        .def_prop_ro("size", &SharedCommunicator::size)
        .def("all_reduce", &all_reduce, nb::arg("x").noconvert())
        .def("all_gather", &all_gather, nb::arg("mine"))
        .def_prop_ro("failed", &SharedCommunicator::failed)
        .def("fail", &SharedCommunicator::fail);
}

} // namespace anthesis
