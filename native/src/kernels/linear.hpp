// Products of a packed matrix and packed rows. Included inside a namespace, with the instruction set switched on.
//
// An output is summed in the order of the columns in one lane, whatever else is computed beside it: the bits do not
// depend on how many rows or tiles a kernel works on at a time.

// A format says how one unit of T tiles is multiplied with a block of R rows, how many sums are kept for each output, and
// what 32 inputs of one row take: floats; or pairs of bf16; or a scale, a sum and the quantised inputs. A unit has several
// parts of 32 columns where a group of four-bit values is larger.
constexpr std::size_t kRecordHead = 8; // scale and sum

template <bool kHalf> struct PlainFormat { // fp32, fp16
    static constexpr std::size_t input_bytes = 32 * 4;
    static constexpr int sums_per_output = 1;

    template <int T, int R>
    static INLINE void unit(Tiles<T, R> w, int, const std::byte* x, Floats (&sums)[T][R]) {
        const auto* in = reinterpret_cast<const float*>(x);
        for (int k = 0; k < 32; ++k)
            UNROLL for (int t = 0; t < T; ++t) {
                const std::byte* at = w.at(t, k * (kHalf ? 32 : 64));
                if (k % (kHalf ? 2 : 1) == 0) w.fetch(at);
                const Floats value = kHalf ? load_halves(at) : load(reinterpret_cast<const float*>(at));
                UNROLL for (int r = 0; r < R; ++r) sums[t][r] = multiply_add(value, fill(in[k * R + r]), sums[t][r]);
            }
    }

    static INLINE void pack(const float* x, std::byte* record, int rows, int row) {
        auto* out = reinterpret_cast<float*>(record) + row;
        for (int k = 0; k < 32; ++k) out[k * rows] = x[k];
    }
};

struct Bf16Format {
    static constexpr std::size_t input_bytes = kBf16InputBytes;
    static constexpr int sums_per_output = 1;

    template <int T, int R>
    static INLINE void unit(Tiles<T, R> w, int, const std::byte* x, Floats (&sums)[T][R]) {
        add_bf16_unit(w, x, sums);
    }

    static INLINE void pack(const float* x, std::byte* record, int rows, int row) { pack_bf16(x, record, rows, row); }
};

template <bool kGrouped, bool kWide> struct Int8Format {
    static constexpr std::size_t input_bytes = kRecordHead + kInt8InputBytes<kWide>;
    static constexpr int sums_per_output = 2; // in integers, and of all groups

    template <int T, int R>
    static INLINE void unit(Tiles<T, R> w, int, const std::byte* x, Floats (&sums)[T][R]) {
        const auto* scales = reinterpret_cast<const float*>(x);
        const auto* offsets = reinterpret_cast<const std::int32_t*>(x) + R;
        Ints dot[T][R];
        dot_int8<kWide>(w.behind(kGrouped ? 32 : 0), offsets + R, offsets, dot);
        UNROLL for (int t = 0; t < T; ++t) {
            if constexpr (kGrouped) {
                const Floats scale = load_halves(w.at(t, 0));
                w.fetch(w.at(t, 512));
                UNROLL for (int r = 0; r < R; ++r)
                    sums[t][r] = multiply_add(to_floats(dot[t][r]), scale * fill(scales[r]), sums[t][r]);
            } else {
                UNROLL for (int r = 0; r < R; ++r)
                    sums[t][r] = multiply_add(to_floats(dot[t][r]), fill(scales[r]), sums[t][r]);
            }
        }
    }

    // Stored bytes are 128 more than the values: what that adds to the products is taken off at the start.
    static INLINE void pack(const float* x, std::byte* record, int rows, int row) {
        const Quantised q = quantise<kWide>(x);
        reinterpret_cast<std::int32_t*>(record)[rows + row] = -128 * sum(q.first + q.second);
        pack_group<kInt8InputBytes<kWide> / 4>(q, record, rows, row, arrange_int8_inputs<kWide>);
    }
};

template <bool kMinimum, bool kWide> struct Int4Format {
    static constexpr std::size_t input_bytes = kRecordHead + (kWide ? 64 : 32);
    static constexpr int sums_per_output = 2;

    template <int T, int R>
    static INLINE void unit(Tiles<T, R> w, int parts, const std::byte* x, Floats (&sums)[T][R]) {
        UNROLL for (int t = 0; t < T; ++t) w.fetch(w.at(t, 0));
        if (parts == 1) { // groups of 32: the loop below without sums of its own
            const auto* scales = reinterpret_cast<const float*>(x);
            Floats group[T][R];
            multiply_part<T, R>(w, x, group);
            finish_group<T, R>(w, group, fill_rows<R>(scales + R).lanes, sums);
            return;
        }
        Floats total[T][R], offset[R];
        UNROLL for (int r = 0; r < R; ++r) offset[r] = zeros();
        UNROLL for (int t = 0; t < T; ++t) {
            UNROLL for (int r = 0; r < R; ++r) total[t][r] = zeros();
        }
        for (int part = 0; part < parts; ++part) {
            const std::byte* record = x + part * input_bytes * R;
            const auto* scales = reinterpret_cast<const float*>(record);
            Floats group[T][R];
            multiply_part<T, R>(w.behind(part * 256), record, group);
            UNROLL for (int t = 0; t < T; ++t) {
                UNROLL for (int r = 0; r < R; ++r) total[t][r] = total[t][r] + group[t][r];
            }
            UNROLL for (int r = 0; r < R; ++r) offset[r] = offset[r] + fill(scales[R + r]);
        }
        finish_group<T, R>(w, total, offset, sums);
    }

    // Behind the scale stands what the group's inputs add up to, times what belongs to it: 1 with a minimum, -8 without.
    static INLINE void pack(const float* x, std::byte* record, int rows, int row) {
        const Quantised q = quantise<kWide>(x);
        const float factor = kMinimum ? 1.0f : -8.0f;
        reinterpret_cast<float*>(record)[rows + row] = factor * q.scale * static_cast<float>(sum(q.first + q.second));
        pack_group<kWide ? 16 : 8>(q, record, rows, row, arrange_bytes<kWide>);
    }

private:
    static constexpr std::size_t kHead = kMinimum ? 64 : 32; // scales, minimums

    template <int R> struct Rows {
        Floats lanes[R];
    };
    template <int R> static INLINE Rows<R> fill_rows(const float* x) {
        Rows<R> rows;
        UNROLL for (int r = 0; r < R; ++r) rows.lanes[r] = fill(x[r]);
        return rows;
    }

    // group = (values of 32 columns, 0 .. 15) * inputs
    template <int T, int R>
    static INLINE void multiply_part(Tiles<T, R> w, const std::byte* record, Floats (&group)[T][R]) {
        const auto* scales = reinterpret_cast<const float*>(record);
        Ints dot[T][R];
        dot_int4<kWide>(w.behind(kHead), reinterpret_cast<const std::int32_t*>(record) + 2 * R, dot);
        UNROLL for (int t = 0; t < T; ++t) {
            UNROLL for (int r = 0; r < R; ++r) group[t][r] = to_floats(dot[t][r]) * fill(scales[r]);
        }
    }

    template <int T, int R>
    static INLINE void finish_group(Tiles<T, R> w, const Floats (&group)[T][R], const Floats (&offset)[R], Floats (&sums)[T][R]) {
        UNROLL for (int t = 0; t < T; ++t) {
            const Floats scale = load_halves(w.at(t, 0));
            if constexpr (kMinimum) {
                const Floats minimum = load_halves(w.at(t, 32));
                UNROLL for (int r = 0; r < R; ++r)
                    sums[t][r] = multiply_add(offset[r], minimum, multiply_add(group[t][r], scale, sums[t][r]));
            } else {
                UNROLL for (int r = 0; r < R; ++r) sums[t][r] = multiply_add(group[t][r] + offset[r], scale, sums[t][r]);
            }
        }
    }
};

// Calls f(Format()) with the format of this kind and width.
template <class F> INLINE decltype(auto) with_format(const MatrixKind& kind, InputWidth width, F&& f) {
    const bool wide = width == InputWidth::wide;
    switch (kind.elements) {
    case Elements::fp32: return f(PlainFormat<false>());
    case Elements::fp16: return f(PlainFormat<true>());
    case Elements::bf16: return f(Bf16Format());
    case Elements::int8:
        if (kind.group) return wide ? f(Int8Format<true, true>()) : f(Int8Format<true, false>());
        return wide ? f(Int8Format<false, true>()) : f(Int8Format<false, false>());
    default:
        if (kind.has_minimum) return wide ? f(Int4Format<true, true>()) : f(Int4Format<true, false>());
        return wide ? f(Int4Format<false, true>()) : f(Int4Format<false, false>());
    }
}

// The sums of T tiles for one block of R rows.
template <class Format, int T, int R>
INLINE void sum_block(const MatrixLayout& layout, Tiles<T, R> w, const std::byte* x, Floats (&sums)[T][R]) {
    UNROLL for (int t = 0; t < T; ++t) {
        UNROLL for (int r = 0; r < R; ++r) sums[t][r] = zeros();
    }
    const std::size_t unit_bytes = layout.unit_bytes;
    const int parts = layout.unit_columns / kInputGroup;
    for (int unit = 0; unit < layout.units; ++unit) {
        Format::template unit<T, R>(w, parts, x, sums);
        w.position += unit_bytes;
        x += Format::input_bytes * parts * R;
    }
}

INLINE Floats with_scale_and_bias(Floats sum, const Matrix& matrix, bool adds_biases, int tile) {
    if (matrix.layout.has_row_scales) sum = sum * load(matrix.row_scales(tile));
    return adds_biases ? sum + load(matrix.biases(tile)) : sum;
}

// What follows the sums of one tile: `sums` and `gates` hold sixteen outputs of each row.
inline NO_INLINE void finish_tile(const TilesProduct& product, int tile, int row, int rows, const float* sums, const float* gates) {
    const ProductOutputs& to = product.to;
    const int first = tile * kTileRows, left = product.matrix->layout.rows - first;
    for (int r = 0; r < rows; ++r, ++row) {
        Floats value = with_scale_and_bias(load(sums + r * kTileRows), *product.matrix, to.adds_biases, tile);
        value = activate(to.activation, value);
        if (product.gate_by)
            value = value * with_scale_and_bias(load(gates + r * kTileRows), *product.gate_by, product.gate_adds_biases, tile);
        if (to.residual) value = load_first(to.residual + row * to.residual_stride + first, left) + value;
        store_first(to.out + row * to.stride + (first - to.first), value, left);
    }
}

// Sums of T tiles and R rows, for finish_tile().
template <int T, int R> struct Stored {
    alignas(64) float of[T][R * kTileRows];
};

template <class Format, int T, int R>
INLINE void store_sums(const MatrixLayout& layout, Tiles<T, R> w, const std::byte* x, Stored<T, R>& to) {
    Floats sums[T][R];
    sum_block<Format, T, R>(layout, w, x, sums);
    UNROLL for (int t = 0; t < T; ++t) {
        UNROLL for (int r = 0; r < R; ++r) store(to.of[t] + r * kTileRows, sums[t][r]);
    }
}

// T tiles, `apart` from each other, and R rows.
template <class Format, int T, int R>
NO_INLINE void tiles_block(const TilesProduct& product, int tile, int apart, const std::byte* x, int row) {
    Stored<T, R> sums, gates;
    const auto sum = [&](const Matrix& matrix, Stored<T, R>& to) __attribute__((always_inline)) {
        Tiles<T, R> w{.tile = {}, .from_memory = row == 0};
        UNROLL for (int t = 0; t < T; ++t) w.tile[t] = matrix.tile(tile + t * apart);
        store_sums<Format, T, R>(matrix.layout, w, x, to);
    };
    sum(*product.matrix, sums);
    if (product.gate_by) {
        sum(*product.gate_by, gates);
    }
    const int rows = std::min(R, product.rows - row);
    for (int t = 0; t < T; ++t) finish_tile(product, tile + t * apart, row, rows, sums.of[t], gates.of[t]);
}

// One row and T tiles, half of them of the matrix and half of its gate.
template <class Format, int T> NO_INLINE void gated_row(const TilesProduct& product, int tile, int apart) {
    Tiles<T, 1> w{};
    UNROLL for (int t = 0; t < T / 2; ++t) {
        w.tile[t] = product.matrix->tile(tile + t * apart);
        w.tile[T / 2 + t] = product.gate_by->tile(tile + t * apart);
    }
    Stored<T, 1> sums;
    store_sums<Format, T, 1>(product.matrix->layout, w, product.x, sums);
    for (int t = 0; t < T / 2; ++t) finish_tile(product, tile + t * apart, 0, 1, sums.of[t], sums.of[T / 2 + t]);
}

constexpr std::size_t kCachedInputBytes = 160 << 10; // of a second-level cache of half a mebibyte and more
constexpr int kTilesTogether = 4;                    // that pass by the rows before the next do

// How many tiles beside each other have registers for their sums. Of one row four, so that the arithmetic does not wait for
// itself.
template <class Format, int R> constexpr int tiles_beside() {
    constexpr int most = kMostSums / (R * Format::sums_per_output);
    return R == 1 || most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

template <class Format> struct TilesKernel {
    // Memory is read faster as four streams than as one.
    static void streams(const TilesProduct& product, int first, int last, int apart) {
        for (int tile = first; tile < last; ++tile)
            if (product.gate_by)
                gated_row<Format, 4>(product, tile, apart);
            else
                tiles_block<Format, 4, 1>(product, tile, apart, product.x, 0);
    }

    template <int R, int T = tiles_beside<Format, R>()>
    static void rows_block(const TilesProduct& product, int first, int last, const std::byte* x, int row) {
        for (; first + T <= last; first += T) tiles_block<Format, T, R>(product, first, 1, x, row);
        if constexpr (T > 1)
            if (first < last) rows_block<R, T / 2>(product, first, last, x, row);
    }

    static void some_rows(const TilesProduct& product, int first, int last, const std::byte* x, int row, int count) {
        if (count == kBlockRows) return rows_block<kBlockRows>(product, first, last, x, row);
        if constexpr (kBlockRows > 8)
            if (count == 8) return rows_block<8>(product, first, last, x, row);
        switch (count) {
        case 4: return rows_block<4>(product, first, last, x, row);
        case 2: return rows_block<2>(product, first, last, x, row);
        default: return rows_block<1>(product, first, last, x, row);
        }
    }

    // Up to three tiles and one row.
    static void few_tiles(const TilesProduct& product, int first, int last) {
        if (!product.gate_by) return rows_block<1, 2>(product, first, last, product.x, 0);
        for (int tile = first; tile < last; ++tile) gated_row<Format, 2>(product, tile, 1);
    }

    // As many rows as stay in the second-level cache pass by all tiles, then the next: the tiles stay there too, if the
    // caller does not ask for too many at once.
    static void run(const TilesProduct& product, int first, int last) {
        if (product.rows == 1) return few_tiles(product, first, last);
        const MatrixLayout& layout = product.matrix->layout;
        const std::size_t row_bytes = Format::input_bytes * layout.parts();
        const int blocks_at_once = std::max(1, static_cast<int>(kCachedInputBytes / (row_bytes * kBlockRows)));
        for (int begin = 0; begin < product.rows; begin += blocks_at_once * kBlockRows) {
            const int end = std::min(product.rows, begin + blocks_at_once * kBlockRows);
            for (int tile = first; tile < last; tile += kTilesTogether)
                for (int row = begin, count; row < end; row += count) {
                    count = block_rows(kBlockRows, product.rows - row);
                    some_rows(product, tile, std::min(tile + kTilesTogether, last), product.x + row * row_bytes, row, count);
                }
        }
    }
};

inline void streams_product(const TilesProduct& product, int first, int last, int apart) {
    with_format(product.matrix->layout.kind, product.width,
                [&](auto format) { TilesKernel<decltype(format)>::streams(product, first, last, apart); });
}

inline void tiles_product(const TilesProduct& product, int first, int last) {
    with_format(product.matrix->layout.kind, product.width,
                [&](auto format) { TilesKernel<decltype(format)>::run(product, first, last); });
}

// Inputs ---------------------------------------------------------------------------------------------------------------

inline std::size_t packed_row_bytes(const MatrixKind& kind, InputWidth width, int columns) {
    return with_format(kind, width, [](auto format) { return decltype(format)::input_bytes; }) *
           MatrixLayout(kind, 1, columns).parts();
}

// Which of the layouts below a format's inputs have.
inline int input_format(const MatrixKind& kind, InputWidth width) {
    const int wide = width == InputWidth::wide;
    switch (kind.elements) {
    case Elements::fp32:
    case Elements::fp16: return 0;
    case Elements::bf16: return 1;
    case Elements::int8: return 2 + wide;
    case Elements::int4: return (kind.has_minimum ? 4 : 6) + wide;
    }
    return -1;
}

template <class Format> void pack_rows_as(int padded, const PackRows& job) {
    for (int row = 0; row < job.block; ++row) {
        const bool is_there = row < job.rows;
        const float* x = job.x + row * job.stride;
        const int columns = is_there ? job.columns : 0;
        if (is_there && job.norm) {
            norm(*job.norm, x, job.scratch, columns);
        } else if (padded != columns) {
            std::memcpy(job.scratch, x, columns * sizeof(float));
        }
        if (job.norm || padded != columns) {
            for (int i = columns; i < padded; ++i) job.scratch[i] = 0;
            x = job.scratch;
        }
        std::byte* record = job.out;
        for (int i = 0; i < padded; i += kInputGroup, record += Format::input_bytes * job.block)
            Format::pack(x + i, record, job.block, row);
    }
}

inline void pack_rows(const MatrixKind& kind, InputWidth width, const PackRows& job) {
    const int padded = kInputGroup * static_cast<int>(MatrixLayout(kind, 1, job.columns).parts());
    with_format(kind, width, [&](auto format) { pack_rows_as<decltype(format)>(padded, job); });
}
