// Sixteen lanes on AVX-512: one register. Included inside a namespace, with the instruction set switched on.

using Floats = __m512;
struct Ints {
    __m512i all;
};

INLINE Floats fill(float x) { return _mm512_set1_ps(x); }
INLINE Floats zeros() { return _mm512_setzero_ps(); }
INLINE Floats load(const float* p) { return _mm512_loadu_ps(p); }
INLINE void store(float* p, Floats a) { _mm512_storeu_ps(p, a); }
INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
// The second where one is NaN.
INLINE Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
INLINE Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
INLINE Floats magnitude(Floats a) { return _mm512_abs_ps(a); }
INLINE Floats where_negative(Floats x, Floats a, Floats b) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x)), b, a);
}
INLINE Floats round_to_whole(Floats a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE Floats times_power_of_two(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }
INLINE float sum(Floats a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
INLINE float largest(Floats a) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
INLINE Floats lane_numbers() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

INLINE Floats load_halves(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
// To the nearest bf16, of two equally near ones the even one; a NaN stays one. Not by the processor's own conversion,
// which takes subnormal numbers for zero.
INLINE __m256i bf16_words(Floats a) {
    const __m512i word = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(word, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(word, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(word, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}
INLINE void store_bf16(void* p, Floats a) { _mm256_storeu_si256(static_cast<__m256i*>(p), bf16_words(a)); }

INLINE Ints to_ints(Floats a) { return {_mm512_cvtps_epi32(a)}; }
INLINE Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a.all); }
INLINE Ints fill_ints(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
INLINE Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.all, b.all)}; }
INLINE Ints operator-(Ints a, Ints b) { return {_mm512_sub_epi32(a.all, b.all)}; }
INLINE Ints arithmetic_shift(Ints a, unsigned bits) { return {_mm512_srai_epi32(a.all, bits)}; }
INLINE Ints shift_left(Ints a, unsigned bits) { return {_mm512_slli_epi32(a.all, bits)}; }
INLINE std::int32_t sum(Ints a) { return _mm512_reduce_add_epi32(a.all); }
// Thirty-two whole numbers of -128 .. 127 as bytes, in order.
INLINE void store_bytes(void* p, Ints a, Ints b) {
    auto* at = static_cast<__m128i*>(p);
    _mm_storeu_si128(at, _mm512_cvtepi32_epi8(a.all));
    _mm_storeu_si128(at + 1, _mm512_cvtepi32_epi8(b.all));
}
INLINE void fetch_ahead(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
// Makes the compiler believe that the value is another one now.
INLINE void use_again(Floats& a) { __asm__ volatile("" : "+v"(a)); }
INLINE void use_again(Ints& a) { __asm__ volatile("" : "+v"(a.all)); }
