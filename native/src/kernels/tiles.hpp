// Where a unit of T tiles is read, for R rows. Included inside a namespace, with the instruction set switched on.

// Bytes between what is read from memory and what is fetched: into the first-level cache for few rows, which use it up at
// once (and processors fetch ahead by themselves too: twice as far was slower); into the second for more.
constexpr std::size_t kAhead = 256, kFarAhead = 8192;
constexpr int kFewRows = 4;

template <int T, int R> struct Tiles {
    const std::byte* tile[T];
    std::size_t position = 0;  // in each of them
    bool from_memory = true;   // not in a cache yet

    INLINE const std::byte* at(int t, std::size_t offset) const { return tile[t] + position + offset; }
    INLINE Tiles behind(std::size_t offset) const {
        Tiles moved = *this;
        moved.position += offset;
        return moved;
    }
    INLINE void fetch(const std::byte* read) const {
        if constexpr (R <= kFewRows)
            fetch_ahead(read + kAhead);
        else if (from_memory)
            __builtin_prefetch(read + kFarAhead, 0, 2);
    }
};
