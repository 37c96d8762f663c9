/* What native.c and native_attention.c share: names, and functions of a row. */
#ifndef CPT_KERNELS_NATIVE_H
#define CPT_KERNELS_NATIVE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef int64_t num;

#define SIMD _Pragma("omp simd")
#define PARALLEL _Pragma("omp parallel for num_threads(threads) schedule(static) if (threads > 1)")

/* e^x with an error of about one unit in the last place, also where x is infinite or not a number: 2^k * e^r with
 * |r| <= ln(2) / 2, ln(2) in two parts (Cody and Waite), e^r by the polynomial of Cephes' expf. */
static inline __attribute__((always_inline)) float exponential(float x) {
    /* Comparisons that a NaN fails leave it as it is. */
    float bounded = x > 88.8f ? 88.8f : x;
    bounded = bounded < -104.0f ? -104.0f : bounded;
    const float shifted = bounded * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: rounds to an integer */
    const float k = shifted - 12582912.0f;
    float r = bounded - k * 0.693359375f;
    r = r + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    /* In two halves, since 2^k itself overflows for k = 128 and underflows below -126. */
    union { float f; int32_t i; } bits, low, high;
    bits.f = shifted;
    const int32_t power = bits.i - 0x4B400000;
    const int32_t half = power >> 1;
    low.i = (int32_t)((uint32_t)(half + 127) << 23);
    high.i = (int32_t)((uint32_t)(power - half + 127) << 23);
    return p * low.f * high.f;
}

/* NaN where there is one in the row. */
static inline float largest_of(const float *row, num words) {
    float largest = -INFINITY;
    int32_t strange = 0;
    _Pragma("omp simd reduction(max : largest) reduction(| : strange)") for (num w = 0; w < words; w++) {
        largest = row[w] > largest ? row[w] : largest;
        strange |= row[w] != row[w];
    }
    return strange ? NAN : largest;
}

/* The sum of e^(x * scale - largest), which take the place of the row unless kept is null. In runs of words, so that the
 * sum of a long row loses no small terms. */
#define RUN 1024
static inline float exponentials(const float *row, float *kept, num words, float scale, float largest) {
    double total = 0;
    for (num start = 0; start < words; start += RUN) {
        const num stop = start + RUN < words ? start + RUN : words;
        float part = 0;
        if (kept) {
            _Pragma("omp simd reduction(+ : part)") for (num w = start; w < stop; w++) {
                kept[w] = exponential(row[w] * scale - largest);
                part += kept[w];
            }
        } else {
            _Pragma("omp simd reduction(+ : part)") for (num w = start; w < stop; w++)
                part += exponential(row[w] * scale - largest);
        }
        total += part;
    }
    return (float)total;
}

#endif
