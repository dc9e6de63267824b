#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "../matrix.hpp"

namespace anthesis {

enum class Activation { none, gelu, gelu_tanh, silu, relu };

// To what the inputs of a product are rounded before it. `natural`: what belongs to the kind of weight: nothing for fp32
// and fp16, bf16 for bf16, eight bits in groups of 32 for the integer kinds. `wide`: sixteen bits for these.
enum class InputWidth { natural, wide };

// A norm that comes before a product, over whole rows.
struct NormSpec {
    const float* weight;
    const float* bias; // or null
    float epsilon;
    bool centered; // layer norm; else root mean square
};

// How many rows the next block has when `rows` are left: at most `most`, which is 4 or more; else 8 if `most` is more, 4, 2,
// 1. The last block may have one or two more than are left, with zeros in them: that takes less time than two blocks more.
constexpr int block_rows(int most, int rows) {
    const int filled = rows >= most ? most : rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
    const int next = std::min(2 * filled, most);
    return rows > filled && next - rows <= (next <= 8 ? 2 : 1) ? next : filled;
}

// The rows of all blocks.
constexpr int padded_rows(int most, int rows) {
    int row = rows / most * most;
    while (row < rows) row += block_rows(most, rows - row);
    return row;
}

// One block of rows of inputs, packed for a kind of weight. Rows are packed side by side, so that the kernel finds an
// element of each of them with one address.
struct PackRows {
    const float* x;
    std::size_t stride; // floats from row to row
    int rows;           // that are there
    int block;          // of the block, at most `max_rows`; those that are not there are zeros
    int columns;
    const NormSpec* norm; // or null
    std::byte* out;
    float* scratch; // as many floats as there are columns, rounded up to 32
};

// What becomes of the sums.
struct ProductOutputs {
    bool adds_biases;      // those of the matrix
    float* out;            // first row, output `first`
    int first;             // a multiple of 16
    std::size_t stride;    // floats from row to row
    Activation activation; // of the first matrix
    const float* residual; // first row, first output of the matrix, or null
    std::size_t residual_stride;
};

// The product of some tiles of a matrix with every row.
struct TilesProduct {
    const Matrix* matrix;
    const Matrix* gate_by; // activation(matrix x) * (gate_by x), or null
    bool gate_adds_biases;
    InputWidth width;
    const std::byte* x; // packed blocks
    int rows;
    ProductOutputs to;
};

constexpr int kBlockTokens = 64; // of a block of the cache

// Where the keys and values of a layer stand. A block holds 64 tokens: of each head the keys, then the values, in lanes of four
// bytes: a float, or two bf16 that one instruction multiplies and adds. Keys are (D, 64), or (D/2, 64) pairs of elements, the
// last with a zero where D is odd; values (64, D), or (32, D) pairs of tokens.
struct CacheLayout {
    int kv_heads, head_dim;
    bool is_bf16;
    int numbers_per_lane() const { return is_bf16 ? 2 : 1; }
    int key_lanes() const { return (head_dim + numbers_per_lane() - 1) / numbers_per_lane(); }
    std::size_t key_bytes() const { return static_cast<std::size_t>(key_lanes()) * kBlockTokens * 4; }
    std::size_t value_bytes() const { return static_cast<std::size_t>(kBlockTokens / numbers_per_lane()) * head_dim * 4; }
    std::size_t block_bytes() const { return kv_heads * (key_bytes() + value_bytes()); }
    std::size_t keys_at(int head) const { return head * (key_bytes() + value_bytes()); }
    std::size_t values_at(int head) const { return keys_at(head) + key_bytes(); }
};

struct AttendLayer {
    CacheLayout layout;
    std::byte* cache;
    int queries_per_kv_head_of_model;
    int first_head, first_kv_head; // of this rank
    int heads;                     // query heads of this rank
    float scale;
    const float* slopes; // of this rank's heads, or null
    int window;          // keys a row sees, its own included; 0: all
    bool rotates;
};

struct AttendRows {
    const AttendLayer* layer;
    const float *q, *k, *v;
    std::size_t q_stride, kv_stride;
    const float* angles; // (R, D): D/2 cosines, then D/2 sines, or null
    float* out;
    std::size_t out_stride;
    const std::int32_t* positions;
    const std::int32_t* table; // the sequence's line of the block table
    int first_row, rows;       // of one sequence
    int kv_head;
    float* scratch;
};

// Some key-value heads of some blocks of a sequence.
struct KeyRange {
    int first_kv_head, last_kv_head;
    int first_block, last_block;
};

// The kernels of one instruction set.
struct Kernels {
    const char* name;
    int max_rows; // in a block of packed inputs

    // Bytes of one packed row; a block of n rows takes n times as many.
    std::size_t (*packed_row_bytes)(const MatrixKind& kind, InputWidth width, int columns);
    void (*pack_rows)(const MatrixKind& kind, InputWidth width, const PackRows& rows);
    // Equal numbers for kinds whose packed inputs are the same.
    int (*input_format)(const MatrixKind& kind, InputWidth width);
    void (*tiles_product)(const TilesProduct& product, int first_tile, int last_tile);
    // Of a single row: the tiles [first, last), and as many `apart`, twice and three times as far behind them. All are read
    // side by side. With a gate: [first, last) and the ones `apart` behind them, of both matrices.
    void (*streams_product)(const TilesProduct& product, int first, int last, int apart);

    void (*norm)(const NormSpec& norm, const float* x, float* out, int width);
    void (*activate)(Activation activation, const float* x, float* out, int count);
    void (*rotate)(const float* x, const float* angles, float* out, int head_dim);

    // Prompts: stores the keys and values of the rows in the cache, for one key-value head; and attends with it, once all of
    // the sequence are stored.
    void (*attend_store)(const AttendRows& rows);
    void (*attend)(const AttendRows& rows);
    // Single rows: stores the row's keys and values, if their block is in the range, and attends to the range: to all blocks
    // of the sequence; or, with `records`, for one key-value head to some of them, and writes what each block has for each
    // query head, attend_block_floats() for each block, for attend_finish().
    void (*attend_row)(const AttendRows& row, const KeyRange& range, float* records);
    // Puts together the records of all blocks for one key-value head.
    void (*attend_finish)(const AttendRows& row, const KeyRange& range, const float* records);
    std::size_t (*attend_block_floats)(const AttendLayer& layer);
    std::size_t (*attend_scratch_floats)(const AttendLayer& layer);
    // The place of the largest of `count` > 0 numbers, the first of equal ones; a NaN counts as the largest.
    int (*argmax)(const float* x, int count);
    // The largest of them; NaN where one is not finite.
    float (*maximum)(const float* x, int count);

    // Does nothing but multiply-adds of fp32, bf16 or int8, many in each round; returns how many. Null where the processor's
    // instructions are not known. See peak.cpp.
    double (*multiply_adds)(Elements elements, long long rounds);
};

// Those that this processor can run, the fastest first; there is always "portable".
std::vector<const Kernels*> usable_kernels();

// The fastest, or those that the environment variable ANTHESIS_CPU_KERNELS names.
// Throws std::invalid_argument where it names none that can run here.
const Kernels& chosen_kernels();

} // namespace anthesis
