#pragma once

#include <nanobind/nanobind.h>

namespace anthesis {

// Adds the classes and functions of the CPU device to the module.
void bind_cpu(nanobind::module_& m);

} // namespace anthesis
