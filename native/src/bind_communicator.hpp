#pragma once

#include <memory>

#include <nanobind/nanobind.h>

#include "communicator.hpp"

namespace anthesis {

// What a program exchanges with other ranks by: a SharedCommunicator, any object with its methods, or None.
std::shared_ptr<Communicator> communicator_of(const nanobind::object& ranks);

void bind_communicator(nanobind::module_& m);

} // namespace anthesis
