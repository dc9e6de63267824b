#pragma once

#include <cstddef>
#include <functional>
#include <vector>

namespace anthesis {

// How fast `threads` threads together read a buffer of `nbytes`. Passes take turns in two ways of reading, at least
// three of each and as many as fit into `seconds`; of the way whose median is higher every pass is a sample, in
// bytes per second. A pass reads the buffer once, or a small one as often as it takes to read 64 MiB. The calling
// thread is one of the readers; between passes it asks `interrupted`, and where that says true the samples so far
// are returned.
//
// Throws std::bad_alloc where there is no such memory, std::system_error where there is no such thread.
std::vector<double> read_bandwidth(std::size_t nbytes, int threads, double seconds,
                                   const std::function<bool()>& interrupted);

} // namespace anthesis
