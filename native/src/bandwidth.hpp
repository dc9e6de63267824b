#pragma once

#include <cstddef>
#include <functional>
#include <vector>

namespace anthesis {

// How fast `threads` threads together read a buffer of `nbytes`: one sample in bytes per second for every pass, at least
// three passes and as many as fit into `seconds`. A pass reads the buffer once, or a small one as often as it takes to
// read 64 MiB. The calling thread is one of the readers; between passes it asks `interrupted`, and where that says true
// the samples so far are returned.
//
// Throws std::bad_alloc where there is no such memory, std::system_error where there is no such thread.
std::vector<double> read_bandwidth(std::size_t nbytes, int threads, double seconds,
                                   const std::function<bool()>& interrupted);

} // namespace anthesis
