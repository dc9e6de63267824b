#if defined(__x86_64__)

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include <immintrin.h>

#include "kernels.hpp"
#include "target.hpp"

ANTHESIS_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")

namespace anthesis::avx512 {
namespace {

constexpr int kRegisterBytes = 64;
constexpr int kMostSums = 16; // of the 32 registers: more are slower where tiles come from memory
constexpr int kBlockRows = 12;
constexpr int kBlockQueries = 12;

#include "lanes_avx512.hpp"
#include "math.hpp"
#include "quantised_inputs.hpp"
#include "tiles.hpp"
#include "dots_avx512.hpp"
#include "linear.hpp"
#include "cache.hpp"
#include "attend.hpp"
#include "peak.hpp"

} // namespace

extern const Kernels kernels;
const Kernels kernels = ANTHESIS_KERNELS("avx512", multiply_adds);

} // namespace anthesis::avx512

ANTHESIS_TARGET_END

#endif
