#pragma once

#include <cstddef>

namespace anthesis {

// Zeroed memory straight from the operating system, in huge pages where it has them: large buffers that are streamed
// once per token would otherwise spend their time in TLB misses. Pages are placed when first written, so the thread
// that will read a part should be the one that writes it.
class Pages {
public:
    // Throws std::bad_alloc where the system refuses.
    explicit Pages(std::size_t nbytes);
    ~Pages();
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;

    void* data() const noexcept { return data_; }
    std::size_t nbytes() const noexcept { return nbytes_; }

private:
    void* mapping_;
    std::size_t mapped_nbytes_;
    void* data_; // inside the mapping, aligned to a huge page
    std::size_t nbytes_;
};

// The next multiple of a cache line.
constexpr std::size_t up_to_line(std::size_t nbytes) { return (nbytes + 63) / 64 * 64; }

} // namespace anthesis
