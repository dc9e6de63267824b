#pragma once

#include "kernels/kernels.hpp"
#include "pool.hpp"

namespace anthesis {

// Multiply-adds per second of all threads of the pool together, in registers: what no product can exceed with the
// instructions that the kernels have. fp32, bf16 and int8. Takes about so many seconds. NaN for
// kernels that know nothing of the processor's instructions.
double multiply_add_peak(Pool& pool, const Kernels& kernels, Elements elements, double seconds);

} // namespace anthesis
