#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels.hpp"
#include "target.hpp"

namespace anthesis::portable {
namespace {

constexpr int kRegisterBytes = 16;
constexpr int kMostSums = 3; // of four registers each
constexpr int kBlockRows = 6;
constexpr int kBlockQueries = 4;

#include "lanes_portable.hpp"
#include "math.hpp"
#include "quantised_inputs.hpp"
#include "tiles.hpp"
#include "dots_portable.hpp"
#include "linear.hpp"
#include "cache.hpp"
#include "attend.hpp"

} // namespace

extern const Kernels kernels;
const Kernels kernels = ANTHESIS_KERNELS("portable", nullptr);

} // namespace anthesis::portable
