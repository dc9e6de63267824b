#include "pages.hpp"

#include <cstdint>
#include <limits>
#include <new>

#include <sys/mman.h>

namespace anthesis {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

} // namespace

Pages::Pages(std::size_t nbytes) : nbytes_(nbytes) {
    if (nbytes == 0 || nbytes > std::numeric_limits<std::ptrdiff_t>::max() - 2 * kHugePage) throw std::bad_alloc();
    const std::size_t rounded = (nbytes + kHugePage - 1) / kHugePage * kHugePage;
    mapped_nbytes_ = rounded + kHugePage; // room to align; what is never touched costs nothing
    mapping_ = mmap(nullptr, mapped_nbytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping_ == MAP_FAILED) throw std::bad_alloc();
    const auto address = reinterpret_cast<std::uintptr_t>(mapping_);
    data_ = reinterpret_cast<void*>((address + kHugePage - 1) / kHugePage * kHugePage);
#ifdef MADV_HUGEPAGE
    // Only advice: a kernel without huge pages refuses it, and small pages are right, just slower.
    (void)madvise(data_, rounded, MADV_HUGEPAGE);
#endif
}

Pages::~Pages() { munmap(mapping_, mapped_nbytes_); }

} // namespace anthesis
