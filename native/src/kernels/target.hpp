#pragma once

// Code between ANTHESIS_TARGET_BEGIN("avx2,fma") and ANTHESIS_TARGET_END is compiled for that instruction set. Headers of
// the standard library are included before, so that none of their functions is: the linker keeps one copy of an inline
// function, and it must run on every processor.

#define ANTHESIS_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#define ANTHESIS_TARGET_BEGIN(features) ANTHESIS_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define ANTHESIS_TARGET_END ANTHESIS_PRAGMA(clang attribute pop)
#else
#define ANTHESIS_TARGET_BEGIN(features) ANTHESIS_PRAGMA(GCC push_options) ANTHESIS_PRAGMA(GCC target(features))
#define ANTHESIS_TARGET_END ANTHESIS_PRAGMA(GCC pop_options)
#endif

// Loops over rows and tiles are written out: their sums are to stay in registers.
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

// Keeps the compiler from reading memory earlier than is written: what is read too early takes registers from the sums.
#define READ_NO_EARLIER() __asm__ volatile("" ::: "memory")

#define INLINE inline __attribute__((always_inline))
#define NO_INLINE __attribute__((noinline))

// The table of the kernels in the surrounding namespace.
#define ANTHESIS_KERNELS(name, peak)                                                                                       \
    {name, kBlockRows, packed_row_bytes, pack_rows, input_format, tiles_product, streams_product, norm, activate, rotate, attend_store, \
     attend, attend_row, attend_finish, attend_block_floats, attend_scratch_floats, argmax, maximum, peak}
