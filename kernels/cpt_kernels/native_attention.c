/* Causal attention of packed documents on a CPU, in fp32, out of products of blocks that stay in the cache.
 *
 * The way of FlashAttention-2 (Dao, arXiv 2307.08691): online softmax forward, probabilities made again backward. The
 * products are torch's own sgemm, whose address is given; inside a parallel region it uses one thread. Blocks of
 * queries begin with their document, so nothing is computed across a border, and of the square under the diagonal only
 * the blocks. Each query sees the keys from first[query] to query + before; `before` keys come before the first query.
 */
#include "native.h"

#include <omp.h>

#define QUERIES 64
#define KEYS 512
/* Between the rows of a block: a power of two would put them all into the same lines of the cache. */
#define ROW (KEYS + 16)
/* Of a thread: two blocks of scores, and three numbers a query. */
#define SCRATCH (2 * QUERIES * ROW + 3 * QUERIES)
#define EACH_UNIT _Pragma("omp parallel for num_threads(threads) schedule(dynamic, 1)")

typedef void (*Sgemm)(const char *, const char *, const int *, const int *, const int *, const float *, const float *,
                      const int *, const float *, const int *, const float *, float *, const int *);

/* c [m, n] = beta * c + alpha * a b by rows; a is stored [k, m] where its letter is T, b [n, k]. */
static void product(Sgemm sgemm, char a_letter, char b_letter, num m, num n, num k, float alpha, const float *a,
                    num a_stride, const float *b, num b_stride, float beta, float *c, num c_stride) {
    /* By columns, as Fortran has it, all three are transposed. */
    const int mi = (int)m, ni = (int)n, ki = (int)k, ai = (int)a_stride, bi = (int)b_stride, ci = (int)c_stride;
    sgemm(&b_letter, &a_letter, &ni, &mi, &ki, &alpha, b, &bi, a, &ai, &beta, c, &ci);
}

static inline num smaller(num a, num b) { return a < b ? a : b; }
static inline num larger(num a, num b) { return a > b ? a : b; }

/* out is [queries, heads, size], lse [heads, queries]; blocks is [num_blocks, 2], the first query of each and one past
 * its last; scratch SCRATCH a thread. Strides are those of heads and of tokens. */
void attention_forward(const float *query, const float *key, const float *value, float *out, float *lse,
                       const int32_t *first, const num *blocks, Sgemm sgemm, float *scratch, num num_blocks,
                       num queries, num heads, num groups, num size, num before, num query_head, num query_token,
                       num key_head, num key_token, num value_head, num value_token, float scale, int threads) {
    EACH_UNIT
    for (num unit = 0; unit < num_blocks * heads; unit++) {
        const num head = unit % heads, start = blocks[2 * (unit / heads)], stop = blocks[2 * (unit / heads) + 1];
        const num rows = stop - start, low = first[start], high = stop + before, out_token = heads * size;
        const float *q = query + head * query_head + start * query_token;
        const float *k = key + head / groups * key_head, *v = value + head / groups * value_head;
        float *scores = scratch + omp_get_thread_num() * SCRATCH, *largest = scores + 2 * QUERIES * ROW;
        float *total = largest + QUERIES, *o = out + start * out_token + head * size;
        for (num r = 0; r < rows; r++) largest[r] = -INFINITY, total[r] = 0;
        for (num k0 = low; k0 < high; k0 += KEYS) {
            const num n = smaller(KEYS, high - k0);
            product(sgemm, 'N', 'T', rows, n, size, scale, q, query_token, k + k0 * key_token, key_token, 0, scores,
                    ROW);
            for (num r = 0; r < rows; r++) {
                float *row = scores + r * ROW;
                const num from = smaller(larger(first[start + r] - k0, 0), n);
                const num to = larger(smaller(start + r + before + 1 - k0, n), from);
                float fade = 1;
                if (to > from) {
                    const float here = largest_of(row + from, to - from);
                    const float now = here > largest[r] || here != here ? here : largest[r];
                    fade = exponential(largest[r] - now);
                    largest[r] = now;
                    total[r] = total[r] * fade + exponentials(row + from, row + from, to - from, 1.0f, now);
                }
                memset(row, 0, (size_t)from * sizeof(float));
                memset(row + to, 0, (size_t)(n - to) * sizeof(float));
                if (k0 > low && fade != 1.0f) {
                    SIMD for (num i = 0; i < size; i++) o[r * out_token + i] *= fade;
                }
            }
            product(sgemm, 'N', 'N', rows, size, n, 1, scores, ROW, v + k0 * value_token, value_token,
                    k0 > low ? 1.0f : 0.0f, o, out_token);
        }
        for (num r = 0; r < rows; r++) {
            const float inverse = 1.0f / total[r];
            SIMD for (num i = 0; i < size; i++) o[r * out_token + i] *= inverse;
            lse[head * queries + start + r] = largest[r] + logf(total[r]);
        }
    }
}

/* grad_query is [queries, heads, size]; grad_key and grad_value [key heads, queries + before, size] by tokens first.
 * borders int32 [documents + 1]; each document and head is a unit, with rows of its own in parts, [2, heads, queries +
 * before, size], which are added up over the heads of a group in their order. */
void attention_backward(const float *grad_out, const float *query, const float *key, const float *value,
                        const float *out, const float *lse, const int32_t *first, const int32_t *borders, Sgemm sgemm,
                        float *scratch, float *parts, float *grad_query, float *grad_key, float *grad_value,
                        num documents, num queries, num heads, num groups, num size, num before, num grad_head,
                        num grad_token, num query_head, num query_token, num key_head, num key_token, num value_head,
                        num value_token, float scale, int threads) {
    const num keys = queries + before, out_token = heads * size, key_heads = heads / groups;
    EACH_UNIT
    for (num unit = 0; unit < documents * heads; unit++) {
        const num head = unit % heads, begin = borders[unit / heads], end = borders[unit / heads + 1];
        if (begin == end) continue;
        const float *k = key + head / groups * key_head, *v = value + head / groups * value_head;
        float *scores = scratch + omp_get_thread_num() * SCRATCH, *errors = scores + QUERIES * ROW;
        float *delta = scores + 2 * QUERIES * ROW;
        float *dk = parts + head * keys * size, *dv = dk + heads * keys * size;
        const num own = begin == 0 ? 0 : begin + before;
        memset(dk + own * size, 0, (size_t)((end + before - own) * size) * sizeof(float));
        memset(dv + own * size, 0, (size_t)((end + before - own) * size) * sizeof(float));
        for (num start = begin; start < end; start += QUERIES) {
            const num rows = smaller(QUERIES, end - start), low = first[start], high = start + rows + before;
            const float *q = query + head * query_head + start * query_token;
            const float *g = grad_out + head * grad_head + start * grad_token;
            const float *o = out + start * out_token + head * size, *log_total = lse + head * queries + start;
            float *dq = grad_query + start * out_token + head * size;
            for (num r = 0; r < rows; r++) {
                float dot = 0;
                _Pragma("omp simd reduction(+ : dot)") for (num i = 0; i < size; i++)
                    dot += g[r * grad_token + i] * o[r * out_token + i];
                delta[r] = dot;
            }
            for (num k0 = low; k0 < high; k0 += KEYS) {
                const num n = smaller(KEYS, high - k0);
                const float *k_block = k + k0 * key_token, *v_block = v + k0 * value_token;
                product(sgemm, 'N', 'T', rows, n, size, scale, q, query_token, k_block, key_token, 0, scores, ROW);
                product(sgemm, 'N', 'T', rows, n, size, 1, g, grad_token, v_block, value_token, 0, errors, ROW);
                for (num r = 0; r < rows; r++) {
                    float *p = scores + r * ROW, *e = errors + r * ROW;
                    const num from = smaller(larger(first[start + r] - k0, 0), n);
                    const num to = larger(smaller(start + r + before + 1 - k0, n), from);
                    memset(p, 0, (size_t)from * sizeof(float));
                    memset(e, 0, (size_t)from * sizeof(float));
                    SIMD for (num i = from; i < to; i++) {
                        p[i] = exponential(p[i] - log_total[r]);
                        e[i] = p[i] * (e[i] - delta[r]) * scale;
                    }
                    memset(p + to, 0, (size_t)(n - to) * sizeof(float));
                    memset(e + to, 0, (size_t)(n - to) * sizeof(float));
                }
                product(sgemm, 'T', 'N', n, size, rows, 1, scores, ROW, g, grad_token, 1, dv + k0 * size, size);
                product(sgemm, 'T', 'N', n, size, rows, 1, errors, ROW, q, query_token, 1, dk + k0 * size, size);
                product(sgemm, 'N', 'N', rows, size, n, 1, errors, ROW, k_block, key_token, k0 > low ? 1.0f : 0.0f,
                        dq, out_token);
            }
        }
    }
    PARALLEL
    for (num token = 0; token < keys; token++)
        for (num which = 0; which < 2; which++)
            for (num head = 0; head < key_heads; head++) {
                const float *in = parts + ((which * heads + head * groups) * keys + token) * size;
                float *to = (which ? grad_value : grad_key) + (token * key_heads + head) * size;
                memcpy(to, in, (size_t)size * sizeof(float));
                for (num group = 1; group < groups; group++)
                    SIMD for (num i = 0; i < size; i++) to[i] += in[group * keys * size + i];
            }
}
