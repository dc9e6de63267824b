#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../cpu_features.hpp"
#include "kernels.hpp"

namespace anthesis {

namespace portable {
extern const Kernels kernels;
}
#if defined(__x86_64__) && !defined(ANTHESIS_PORTABLE_KERNELS)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

std::vector<const Kernels*> usable_kernels() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__) && !defined(ANTHESIS_PORTABLE_KERNELS)
    const auto has = [](std::initializer_list<const char*> names) {
        for (const char* name : names)
            if (!cpu_has(name)) return false;
        return true;
    };
    const bool avx2_usable = has({"avx2", "fma", "f16c"});
    if (avx2_usable &&
        has({"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"}))
        found.push_back(&avx512::kernels);
    if (avx2_usable) found.push_back(&avx2::kernels);
#endif
    found.push_back(&portable::kernels);
    return found;
}

const Kernels& chosen_kernels() {
    const std::vector<const Kernels*> usable = usable_kernels();
    const char* wanted = std::getenv("ANTHESIS_CPU_KERNELS");
    if (!wanted || !*wanted) return *usable.front();
    std::string names;
    for (const Kernels* kernels : usable) {
        if (wanted == std::string_view(kernels->name)) return *kernels;
        names += (names.empty() ? "" : ", ") + std::string(kernels->name);
    }
    throw std::invalid_argument("ANTHESIS_CPU_KERNELS is '" + std::string(wanted) + "'; this processor can run: " + names);
}

} // namespace anthesis
