#include "matrix.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <string>

namespace anthesis {
namespace {

constexpr std::size_t kChunk = std::size_t{64} << 20;

std::size_t unit_nbytes(MatrixKind kind, int columns) {
    const std::size_t lanes = kTileRows, scales = lanes * 2;
    switch (kind.elements) {
    case Elements::fp32: return lanes * 4 * columns;
    case Elements::fp16:
    case Elements::bf16: return lanes * 2 * columns;
    case Elements::int8: return lanes * columns + (kind.group ? scales : 0);
    case Elements::int4: return lanes * columns / 2 + scales * (1 + kind.has_minimum);
    }
    throw std::logic_error("unknown elements");
}

// Where in its unit (behind the scales) a piece of one row stands, and how many bytes it has: pieces are what lies
// together for one lane.
struct Pieces {
    std::size_t bytes;     // of one piece
    std::size_t per_32;    // pieces in 32 columns
};

Pieces pieces_of(Elements elements) {
    switch (elements) {
    case Elements::fp32: return {4, 32};
    case Elements::fp16: return {2, 32};
    case Elements::bf16: return {4, 16};
    case Elements::int8: return {4, 8};
    case Elements::int4: return {4, 4};
    }
    throw std::logic_error("unknown elements");
}

template <std::size_t kBytes>
void spread(const std::byte* row, std::byte* lane, std::size_t pieces) {
    for (std::size_t i = 0; i < pieces; ++i) std::memcpy(lane + i * kTileRows * kBytes, row + i * kBytes, kBytes);
}

// Sixteen whole rows of one unit at once: a transposition of 16 x `pieces` words, in blocks that stay in registers and
// lines of the first-level cache.
template <std::size_t kBytes>
void spread_tile(const std::byte* const* rows, std::byte* out, std::size_t pieces) {
    using Word = std::conditional_t<kBytes == 4, std::uint32_t, std::uint16_t>;
    for (std::size_t i = 0; i < pieces; ++i) {
        Word words[kTileRows];
        for (int lane = 0; lane < kTileRows; ++lane) std::memcpy(&words[lane], rows[lane] + i * kBytes, kBytes);
        std::memcpy(out + i * sizeof(words), words, sizeof(words));
    }
}

} // namespace

MatrixKind matrix_kind(std::string_view name) {
    if (name == "fp32") return {Elements::fp32};
    if (name == "fp16") return {Elements::fp16};
    if (name == "bf16") return {Elements::bf16};
    if (name == "int8") return {Elements::int8, 0, true};
    if (name == "int8-g32") return {Elements::int8, 32, true};
    if (name == "int4") return {Elements::int4, 32, true};
    if (name == "int4-g64") return {Elements::int4, 64, true};
    if (name == "int4-g128") return {Elements::int4, 128, true};
    if (name == "int4m") return {Elements::int4, 32, true, true};
    if (name == "int4m-g64") return {Elements::int4, 64, true, true};
    if (name == "int4m-g128") return {Elements::int4, 128, true, true};
    throw std::invalid_argument("no kernels for weights of the kind " + std::string(name));
}

MatrixLayout::MatrixLayout(MatrixKind kind_, int rows_, int columns_, bool has_biases_)
    : kind(kind_), rows(rows_), columns(columns_), has_row_scales(kind_.has_scale && !kind_.group), has_biases(has_biases_),
      tiles((rows_ + kTileRows - 1) / kTileRows), unit_columns(std::max(kInputGroup, kind_.group)),
      units((columns_ + unit_columns - 1) / unit_columns), unit_bytes(unit_nbytes(kind_, unit_columns)),
      tile_bytes(unit_bytes * static_cast<std::size_t>(units) + kTileRows * sizeof(float) * (has_row_scales + has_biases)) {}

std::shared_ptr<std::byte> Arena::take(std::size_t nbytes) {
    nbytes = up_to_line(nbytes);
    if (!pages_ || used_ + nbytes > pages_->nbytes()) {
        pages_ = std::make_shared<Pages>(std::max(nbytes, kChunk));
        used_ = 0;
    }
    std::byte* data = static_cast<std::byte*>(pages_->data()) + used_;
    used_ += nbytes;
    return {pages_, data};
}

void pack_tiles(const StoredMatrix& stored, Matrix& matrix, int first, int last) {
    const MatrixLayout& layout = matrix.layout;
    const MatrixKind kind = layout.kind;
    const Pieces pieces = pieces_of(kind.elements);
    const std::size_t bytes_per_32 = pieces.bytes * pieces.per_32; // of one row
    const std::size_t row_bytes = (static_cast<std::size_t>(layout.columns) * bytes_per_32 + 31) / 32;
    const std::size_t scale_bytes = kind.group ? kTileRows * 2 : 0;
    for (int tile = first; tile < last; ++tile) {
        const int row = tile * kTileRows, count = std::min(kTileRows, layout.rows - row);
        std::byte* out = matrix.data.get() + static_cast<std::size_t>(tile) * layout.tile_bytes;
        for (int unit = 0; unit < layout.units; ++unit, out += layout.unit_bytes) {
            const std::size_t unit_row_bytes = layout.unit_columns / 32 * bytes_per_32, from = unit * unit_row_bytes;
            const std::size_t here = std::min(unit_row_bytes, row_bytes - from);
            std::byte* at = out;
            if (kind.group) {
                auto* scales = reinterpret_cast<std::uint16_t*>(at);
                for (int lane = 0; lane < kTileRows; ++lane)
                    scales[lane] = lane < count ? stored.scales[(row + lane) * stored.scales_stride + unit] : 0;
                at += scale_bytes;
            }
            if (kind.has_minimum) {
                auto* minimums = reinterpret_cast<std::uint16_t*>(at);
                for (int lane = 0; lane < kTileRows; ++lane)
                    minimums[lane] = lane < count ? stored.minimums[(row + lane) * stored.minimums_stride + unit] : 0;
                at += scale_bytes;
            }
            const std::byte* rows[kTileRows];
            for (int lane = 0; lane < count; ++lane)
                rows[lane] = stored.values + (row + lane) * stored.values_stride + from;
            if (count == kTileRows && here == unit_row_bytes) {
                if (pieces.bytes == 4)
                    spread_tile<4>(rows, at, here / 4);
                else
                    spread_tile<2>(rows, at, here / 2);
            } else {
                std::memset(at, 0, unit_row_bytes * kTileRows);
                std::byte last_piece[4] = {};
                const std::size_t whole = here / pieces.bytes, rest = here % pieces.bytes;
                for (int lane = 0; lane < count; ++lane) {
                    std::byte* to = at + lane * pieces.bytes;
                    if (pieces.bytes == 4)
                        spread<4>(rows[lane], to, whole);
                    else
                        spread<2>(rows[lane], to, whole);
                    if (rest) {
                        std::memcpy(last_piece, rows[lane] + whole * pieces.bytes, rest);
                        std::memcpy(to + whole * kTileRows * pieces.bytes, last_piece, pieces.bytes);
                    }
                }
            }
            if (kind.elements == Elements::int8) // the integer that stands for 0 is 128 then, in the padding too
                for (std::size_t i = 0; i < unit_row_bytes * kTileRows; ++i) at[i] ^= std::byte{0x80};
        }
        auto* behind_units = reinterpret_cast<float*>(out);
        if (layout.has_row_scales)
            for (int lane = 0; lane < kTileRows; ++lane)
                *behind_units++ = lane < count ? half_to_float(stored.scales[(row + lane) * stored.scales_stride]) : 0;
        if (layout.has_biases) std::fill_n(behind_units, kTileRows, 0.0f);
    }
}

void set_biases(Matrix& matrix, const float* biases) {
    const MatrixLayout& layout = matrix.layout;
    if (!layout.has_biases) throw std::invalid_argument("a matrix was packed without room for biases");
    for (int tile = 0; tile < layout.tiles; ++tile) {
        const float *here = matrix.biases(tile), *given = biases + tile * kTileRows;
        const std::size_t nbytes = std::min(kTileRows, layout.rows - tile * kTileRows) * sizeof(float);
        // what is there already is not written again: a step of another program may be reading it
        if (!matrix.biases_are_set)
            std::memcpy(matrix.data.get() + (reinterpret_cast<const std::byte*>(here) - matrix.data.get()), given, nbytes);
        else if (std::memcmp(here, given, nbytes) != 0)
            throw std::invalid_argument("a matrix can't be used with two different biases");
    }
    matrix.biases_are_set = true;
}

void dequantize_row(const Matrix& matrix, int row, float* out) {
    const MatrixLayout& layout = matrix.layout;
    const MatrixKind kind = layout.kind;
    const int lane = row % kTileRows;
    const std::byte* tile = matrix.tile(row / kTileRows);
    const std::size_t scale_bytes = kind.group ? kTileRows * 2 : 0;
    const auto read16 = [](const std::byte* at) {
        std::uint16_t word;
        std::memcpy(&word, at, sizeof(word));
        return word;
    };
    for (int column = 0; column < layout.columns; ++column) {
        const int in_unit = column % layout.unit_columns;
        const std::byte* at = tile + column / layout.unit_columns * layout.unit_bytes;
        switch (kind.elements) {
        case Elements::fp32: std::memcpy(out + column, at + (in_unit * kTileRows + lane) * 4, 4); break;
        case Elements::fp16: out[column] = half_to_float(read16(at + (in_unit * kTileRows + lane) * 2)); break;
        case Elements::bf16: {
            const std::uint16_t bits = read16(at + (in_unit / 2 * kTileRows + lane) * 4 + in_unit % 2 * 2);
            out[column] = std::bit_cast<float>(std::uint32_t{bits} << 16);
            break;
        }
        case Elements::int8: {
            const int value = static_cast<int>(at[scale_bytes + (in_unit / 4 * kTileRows + lane) * 4 + in_unit % 4]) - 128;
            const float scale = kind.group ? half_to_float(read16(at + lane * 2)) : matrix.row_scales(row / kTileRows)[lane];
            out[column] = static_cast<float>(value) * scale;
            break;
        }
        case Elements::int4: {
            const int run = in_unit / 32, in_run = in_unit % 32, byte = in_run % 16;
            const std::byte pair = at[scale_bytes * (1 + kind.has_minimum) + run * kTileRows * 16 + (byte / 4 * kTileRows + lane) * 4 + byte % 4];
            const int value = static_cast<int>(in_run < 16 ? pair & std::byte{15} : pair >> 4);
            const float scale = half_to_float(read16(at + lane * 2));
            out[column] = kind.has_minimum ? static_cast<float>(value) * scale + half_to_float(read16(at + scale_bytes + lane * 2))
                                           : static_cast<float>(value - 8) * scale;
            break;
        }
        }
    }
}

// IEEE 754 binary16: a sign, five bits of exponent biased by 15, ten of fraction.
float half_to_float(std::uint16_t half) {
    const std::uint32_t sign = std::uint32_t{half & 0x8000u} << 16, magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000u | magnitude << 13);
    if (magnitude < 0x0400) { // zero and subnormal numbers, in steps of 2^-24
        const float value = static_cast<float>(magnitude) * 0x1p-24f;
        return sign ? -value : value;
    }
    return std::bit_cast<float>(sign | (magnitude + (112u << 10)) << 13);
}

} // namespace anthesis
