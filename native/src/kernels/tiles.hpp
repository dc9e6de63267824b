// Where a unit of T tiles is read. Included inside a namespace, with the instruction set switched on.

constexpr std::size_t kAhead = 512; // bytes between what is read and what is fetched

template <int T, bool kFetches> struct Tiles {
    const std::byte* first;
    std::size_t step;  // from a tile to the next
    std::size_t ahead; // from what is read to what is fetched

    INLINE const std::byte* at(int tile, std::size_t offset) const { return first + tile * step + offset; }
    INLINE Tiles behind(std::size_t offset) const { return {first + offset, step, ahead}; }
    INLINE void fetch(const std::byte* read) const {
        if constexpr (kFetches) fetch_ahead(read + ahead);
    }
};
