#if defined(__x86_64__)

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include <immintrin.h>

#include "kernels.hpp"
#include "target.hpp"

ANTHESIS_TARGET_BEGIN("avx2,fma,f16c")

namespace anthesis::avx2 {
namespace {

constexpr int kRegisterBytes = 32;
constexpr int kMostSums = 6; // of two registers each; twelve of the sixteen
constexpr int kBlockRows = 6;
constexpr int kBlockQueries = 6;

#include "lanes_avx2.hpp"
#include "math.hpp"
#include "quantised_inputs.hpp"
#include "tiles.hpp"
#include "dots_avx2.hpp"
#include "linear.hpp"
#include "cache.hpp"
#include "attend.hpp"
#include "peak.hpp"

} // namespace

extern const Kernels kernels;
const Kernels kernels = ANTHESIS_KERNELS("avx2", multiply_adds);

} // namespace anthesis::avx2

ANTHESIS_TARGET_END

#endif
