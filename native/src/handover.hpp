#pragma once

namespace anthesis {

// Seconds until what one core writes to a cache line is seen by another: the least of a few dozen averages. 20 to 60
// nanoseconds where they share a last-level cache, and a hundred and more where they don't. Both cores are numbered as
// sched_setaffinity(2) does; the calling thread keeps its own affinity.
//
// Throws std::system_error where a core is not usable, or there can't be another thread.
double handover(int first_core, int second_core);

} // namespace anthesis
