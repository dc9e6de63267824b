#include "cpu_features.hpp"

#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace anthesis {
namespace {

#if defined(__x86_64__)

struct Registers {
    std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(std::uint32_t leaf, std::uint32_t subleaf) {
    Registers r;
    // Leaves the processor does not have stay zero. GCC and clang check the basic leaf; subleaf 1 of leaf 7 reads as
    // zero where it does not exist.
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
    return r;
}

// Register sets the operating system saves on a task switch (XCR0). Written as bytes so that no -mxsave is needed.
std::uint64_t saved_registers() {
    std::uint32_t low = 0, high = 0;
    __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(low), "=d"(high) : "c"(0));
    return (std::uint64_t{high} << 32) | low;
}

// Bit positions: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2A, CPUID; volume 1, chapter 13
// for XCR0.
std::vector<CpuFeature> find() {
    const auto bit = [](std::uint32_t word, int position) { return ((word >> position) & 1) != 0; };
    const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
    const std::uint64_t saved = bit(one.ecx, 27) ? saved_registers() : 0;
    const bool ymm = (saved & 0x6) == 0x6 && bit(one.ecx, 28);
    const bool zmm = ymm && (saved & 0xe0) == 0xe0 && bit(seven.ebx, 16);
    const bool tile = (saved & 0x60000) == 0x60000 && bit(seven.edx, 24);
    return {
        {"avx2", ymm && bit(seven.ebx, 5)},
        {"fma", ymm && bit(one.ecx, 12)},
        {"f16c", ymm && bit(one.ecx, 29)},
        {"avx_vnni", ymm && bit(seven_one.eax, 4)},
        {"avx512f", zmm},
        {"avx512dq", zmm && bit(seven.ebx, 17)},
        {"avx512bw", zmm && bit(seven.ebx, 30)},
        {"avx512vl", zmm && bit(seven.ebx, 31)},
        {"avx512_vnni", zmm && bit(seven.ecx, 11)},
        {"avx512_bf16", zmm && bit(seven_one.eax, 5)},
        {"amx_tile", tile},
        {"amx_int8", tile && bit(seven.edx, 25)},
        {"amx_bf16", tile && bit(seven.edx, 22)},
    };
}

#elif defined(__aarch64__)

// Bit positions: Linux, arch/arm64/include/uapi/asm/hwcap.h; spelled out because older headers lack the newer names.
std::vector<CpuFeature> find() {
#if defined(__linux__)
    const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
#else
    const unsigned long first = 1ul << 1, second = 0; // every 64-bit Arm processor has NEON; claim no more
#endif
    const auto bit = [](unsigned long word, int position) { return ((word >> position) & 1) != 0; };
    return {
        {"neon", bit(first, 1)},
        {"dotprod", bit(first, 20)},
        {"sve", bit(first, 22)},
        {"i8mm", bit(second, 13)},
        {"bf16", bit(second, 14)},
    };
}

#else

std::vector<CpuFeature> find() { return {}; }

#endif

} // namespace

std::span<const CpuFeature> cpu_features() {
    static const std::vector<CpuFeature> features = find();
    return features;
}

bool cpu_has(const char* name) {
    for (const CpuFeature& feature : cpu_features())
        if (std::strcmp(feature.name, name) == 0) return feature.usable;
    return false;
}

} // namespace anthesis
