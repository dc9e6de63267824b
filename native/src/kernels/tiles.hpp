// Where a unit of T tiles is read. Included inside a namespace, with the instruction set switched on.

// Bytes between what is read and what is fetched. Processors fetch ahead by themselves too, and twice as far was slower.
constexpr std::size_t kAhead = 256;

template <int T, bool kFetches> struct Tiles {
    const std::byte* tile[T];
    std::size_t position; // in each of them

    INLINE const std::byte* at(int t, std::size_t offset) const { return tile[t] + position + offset; }
    INLINE Tiles behind(std::size_t offset) const {
        Tiles moved = *this;
        moved.position += offset;
        return moved;
    }
    // One row reads its tiles from memory. Of more rows the first has brought the tile into a cache.
    INLINE void fetch(const std::byte* read) const {
        if constexpr (kFetches) fetch_ahead(read + kAhead);
    }
};
