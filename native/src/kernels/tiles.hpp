// Where a unit of T tiles is read, for R rows. Included inside a namespace, with the instruction set switched on.

// Bytes between what is read and what is fetched. Few rows are done with a tile at the speed of memory: a little ahead, into
// the first-level cache; processors fetch ahead by themselves too, and twice as far was slower.
constexpr std::size_t kAhead = 256;
constexpr int kFewRows = 4;
// More rows take longer, so memory can bring more meanwhile: into the second-level cache, which keeps it for the next tiles.
constexpr std::size_t kFarAhead = 8192;

template <int T, int R> struct Tiles {
    const std::byte* tile[T];
    std::size_t position = 0; // in each of them
    bool from_memory = true;  // not in a cache yet; otherwise the first block of rows has brought them

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
