#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "pages.hpp"

namespace anthesis {

// How the elements of a matrix are stored; the names are those of quantize.py.
enum class Elements { fp32, fp16, bf16, int8, int4 };

struct MatrixKind {
    Elements elements;
    int group = 0;            // columns that share a scale; 0: a whole row does, or nothing
    bool has_scale = false;
    bool has_minimum = false;
};

// Throws std::invalid_argument for a kind that has no kernels.
MatrixKind matrix_kind(std::string_view name);

constexpr int kTileRows = 16;   // rows of the matrix that lie side by side, one in each lane of a vector
constexpr int kInputGroup = 32; // columns whose inputs are quantised together

// Where the parts of a matrix stand.
//
// The rows are cut into tiles of 16, and the columns into units of 32, or of a group where that is larger. Memory holds
// tile after tile, in each unit after unit. A unit holds, for 16 rows (lanes):
//
//   fp32          32 x [16 floats]                       one column after the other
//   fp16          32 x [16 halves]
//   bf16          16 x [16 pairs of two columns]
//   int8           8 x [16 x 4 columns], value + 128
//   int8-g32      [16 scales] and the same
//   int4 kinds    [16 scales] [16 minimums, if any] and for every 32 columns 4 x [16 x 4 bytes]: byte j of the 32
//                 columns holds column j in its low half and column j + 16 in its high half
//
// Columns beyond the width are zero bytes, whatever those stand for, since their inputs are zeros; so are rows beyond the
// height, whose outputs nobody reads. Behind a tile's units stand sixteen floats each: the scales of its rows, of kinds
// whose rows have one, and what is added to its outputs, of matrices that have room for it. In arrays of their own each
// tile would wait for a line from elsewhere in memory.
struct MatrixLayout {
    MatrixLayout(MatrixKind kind, int rows, int columns, bool has_biases = false);

    MatrixKind kind;
    int rows, columns;
    bool has_row_scales, has_biases;
    int tiles, unit_columns, units;
    std::size_t unit_bytes, tile_bytes;
    std::size_t nbytes() const { return static_cast<std::size_t>(tiles) * tile_bytes; }
    // Runs of 32 columns, those that only pad the last unit included.
    std::size_t parts() const { return static_cast<std::size_t>(units) * (unit_columns / kInputGroup); }
};

// Memory that the matrices of a model share, or the caches of its layers: there are hundreds of them, and small ones with
// huge pages of their own would waste most of these, and the time in which the system zeroes them.
class Arena {
public:
    // `nbytes`, aligned to a cache line, kept alive by what is returned. Throws std::bad_alloc.
    std::shared_ptr<std::byte> take(std::size_t nbytes);

private:
    std::shared_ptr<Pages> pages_;
    std::size_t used_ = 0;
};

// A weight matrix in the layout that the kernels read.
struct Matrix {
    MatrixLayout layout;
    std::shared_ptr<std::byte> data;
    bool biases_are_set = false;

    const std::byte* tile(int index) const { return data.get() + static_cast<std::size_t>(index) * layout.tile_bytes; }
    const float* row_scales(int index) const {
        return reinterpret_cast<const float*>(tile(index) + layout.unit_bytes * static_cast<std::size_t>(layout.units));
    }
    const float* biases(int index) const { return row_scales(index) + (layout.has_row_scales ? kTileRows : 0); }
};

// A matrix as it is stored in files: row after row (see quantize.py).
struct StoredMatrix {
    const std::byte* values;
    std::size_t values_stride; // bytes from row to row
    const std::uint16_t* scales = nullptr; // fp16, of a row or of its groups
    std::size_t scales_stride = 0;         // elements
    const std::uint16_t* minimums = nullptr;
    std::size_t minimums_stride = 0;
};

// Writes the tiles [first, last) of the matrix; tiles can be written side by side.
void pack_tiles(const StoredMatrix& stored, Matrix& matrix, int first, int last);

// Writes what is added to each output, as many floats as there are rows. Throws std::invalid_argument for a matrix that has no
// room for it, or is used with other biases already.
void set_biases(Matrix& matrix, const float* biases);

// One row as numbers: `columns` floats.
void dequantize_row(const Matrix& matrix, int row, float* out);

float half_to_float(std::uint16_t half);

} // namespace anthesis
