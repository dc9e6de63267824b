// The Python face of the native code: anthesis._native. Only translation happens here. The signatures are repeated in
// src/anthesis/_native.pyi. What is more than a line or two is in a bind_*.cpp.

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include "bandwidth.hpp"
#include "bind.hpp"
#include "bind_communicator.hpp"
#include "cpu_features.hpp"
#include "handover.hpp"

namespace nb = nanobind;

void bind_sample(nb::module_& m); // bind_sample.cpp

namespace {

std::vector<double> read_bandwidth(std::size_t nbytes, int threads, double seconds) {
    bool signalled = false;
    std::vector<double> samples;
    {
        nb::gil_scoped_release released;
        samples = anthesis::read_bandwidth(nbytes, threads, seconds, [&] {
            nb::gil_scoped_acquire held;
            signalled = PyErr_CheckSignals() != 0;
            return signalled;
        });
    }
    if (signalled) throw nb::python_error();
    return samples;
}

nb::dict cpu_features() {
    nb::dict features;
    for (const anthesis::CpuFeature& feature : anthesis::cpu_features()) features[feature.name] = feature.usable;
    return features;
}

} // namespace

NB_MODULE(_native, m) {
    m.doc() = "Native part of anthesis; use it through anthesis.native.";
    m.def("read_bandwidth", &read_bandwidth, nb::arg("nbytes"), nb::arg("threads"), nb::arg("seconds"));
    m.def("handover", &anthesis::handover, nb::arg("first_core"), nb::arg("second_core"),
          nb::call_guard<nb::gil_scoped_release>());
    m.def("cpu_features", &cpu_features);
    anthesis::bind_communicator(m);
    anthesis::bind_cpu(m);
    bind_sample(m);
}
