#pragma once

#include <span>

namespace anthesis {

// One instruction-set extension that a kernel variant may need.
struct CpuFeature {
    const char* name;
    bool usable; // the processor has it and the operating system saves its registers
};

// The extensions our kernels know of on this architecture, found once. Empty on other architectures.
std::span<const CpuFeature> cpu_features();

// Whether the named extension is usable; false also for one that this architecture does not have.
bool cpu_has(const char* name);

} // namespace anthesis
