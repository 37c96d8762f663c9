/* The elementwise and row-wise operations of a training step on a CPU, in fp32: each reads its inputs once.
 *
 * Plain C99 with OpenMP, compiled on the machine that runs it and called through ctypes (native.py). Rows are handed out
 * in an order that does not depend on the number of threads and every sum has a fixed order, so a result has the same
 * bits on any number of threads. Strides are in elements; within a row elements are neighbours.
 */
#include "native.h"

#define ROWS_OF_A_PARTIAL_SUM 64

/* total (if there is a residual) = x + residual; y = total * rstd * (weight + offset) */
void rms_norm_forward(const float *x, const float *residual, const float *weight, float *total, float *y, float *rstd,
                      num rows, num columns, num x_stride, num residual_stride, float epsilon, float offset,
                      int threads) {
    PARALLEL
    for (num row = 0; row < rows; row++) {
        const float *in = x + row * x_stride;
        if (residual) {
            const float *more = residual + row * residual_stride;
            float *sum = total + row * columns;
            SIMD for (num c = 0; c < columns; c++) sum[c] = more[c] + in[c];
            in = sum;
        }
        float squares = 0;
        _Pragma("omp simd reduction(+ : squares)") for (num c = 0; c < columns; c++) squares += in[c] * in[c];
        const float scale = 1.0f / sqrtf(squares / (float)columns + epsilon);
        float *out = y + row * columns;
        SIMD for (num c = 0; c < columns; c++) out[c] = in[c] * scale * (weight[c] + offset);
        rstd[row] = scale;
    }
}

/* partial is [ceil(rows / 64), columns] and becomes the sums of 64 rows each of the weight's gradient */
void rms_norm_backward(const float *grad_y, const float *grad_sum, const float *x, const float *weight,
                       const float *rstd, float *grad_x, float *partial, num rows, num columns, num grad_stride,
                       num sum_stride, num x_stride, float offset, int threads) {
    const num blocks = (rows + ROWS_OF_A_PARTIAL_SUM - 1) / ROWS_OF_A_PARTIAL_SUM;
    PARALLEL
    for (num block = 0; block < blocks; block++) {
        float *own = partial + block * columns;
        memset(own, 0, (size_t)columns * sizeof(float));
        const num stop = (block + 1) * ROWS_OF_A_PARTIAL_SUM;
        for (num row = block * ROWS_OF_A_PARTIAL_SUM; row < stop && row < rows; row++) {
            const float *grad = grad_y + row * grad_stride, *in = x + row * x_stride;
            const float scale = rstd[row];
            float dot = 0;
            _Pragma("omp simd reduction(+ : dot)") for (num c = 0; c < columns; c++) {
                const float normed = in[c] * scale;
                dot += grad[c] * (weight[c] + offset) * normed;
                own[c] += grad[c] * normed;
            }
            const float mean = dot / (float)columns;
            float *out = grad_x + row * columns;
            if (grad_sum) {
                const float *more = grad_sum + row * sum_stride;
                SIMD for (num c = 0; c < columns; c++)
                    out[c] = more[c] + scale * (grad[c] * (weight[c] + offset) - in[c] * scale * mean);
            } else {
                SIMD for (num c = 0; c < columns; c++)
                    out[c] = scale * (grad[c] * (weight[c] + offset) - in[c] * scale * mean);
            }
        }
    }
}

void swiglu_forward(const float *gate, const float *up, float *y, num rows, num columns, num gate_stride,
                    num up_stride, int threads) {
    PARALLEL
    for (num row = 0; row < rows; row++) {
        const float *g = gate + row * gate_stride, *u = up + row * up_stride;
        float *out = y + row * columns;
        SIMD for (num c = 0; c < columns; c++) out[c] = g[c] / (1.0f + exponential(-g[c])) * u[c];
    }
}

void swiglu_backward(const float *grad_y, const float *gate, const float *up, float *grad_gate, float *grad_up,
                     num rows, num columns, num grad_stride, num gate_stride, num up_stride, int threads) {
    PARALLEL
    for (num row = 0; row < rows; row++) {
        const float *grad = grad_y + row * grad_stride, *g = gate + row * gate_stride, *u = up + row * up_stride;
        float *out_gate = grad_gate + row * columns, *out_up = grad_up + row * columns;
        SIMD for (num c = 0; c < columns; c++) {
            const float sigmoid = 1.0f / (1.0f + exponential(-g[c]));
            out_up[c] = grad[c] * g[c] * sigmoid;
            out_gate[c] = grad[c] * u[c] * sigmoid * (1.0f + g[c] * (1.0f - sigmoid));
        }
    }
}

/* Turns dimensions i and i + half of each head; the others are copied. direction is 1, or -1 to turn back. In place
 * where out is in. Both tables are [table_rows, half]; a position that they do not have gives NaN. */
void rope_turn(const float *in, float *out, const float *cosines, const float *sines, const num *positions, num offset,
               num tokens, num heads, num dimensions, num half, num in_token, num in_head, num out_token, num out_head,
               num table_stride, num table_rows, float direction, int threads) {
    PARALLEL
    for (num token = 0; token < tokens; token++) {
        const num position = (positions ? positions[token] : token) + offset;
        const int known = position >= 0 && position < table_rows;
        const float *c = cosines + position * table_stride, *s = sines + position * table_stride;
        for (num head = 0; head < heads; head++) {
            const float *a = in + token * in_token + head * in_head;
            float *b = out + token * out_token + head * out_head;
            if (!known) {
                for (num i = 0; i < dimensions; i++) b[i] = NAN;
                continue;
            }
            SIMD for (num i = 0; i < half; i++) {
                const float low = a[i], high = a[i + half], turn = direction * s[i];
                b[i] = low * c[i] - high * turn;
                b[i + half] = high * c[i] + low * turn;
            }
            if (in != out)
                for (num i = 2 * half; i < dimensions; i++) b[i] = a[i];
        }
    }
}

/* share (if any) is the derivative of the loss by each token's nll; then the logits become their gradient. The largest
 * leaves before anything is added up: nll then has the error of the logits' differences, not of their size. */
void cross_entropy_rows(float *logits, const num *labels, const float *share, float *nll, float *lse, num rows,
                        num words, num stride, num ignore, float z_loss, float scale, int threads) {
    PARALLEL
    for (num r = 0; r < rows; r++) {
        float *row = logits + r * stride;
        const num label = labels[r];
        if (scale != 1.0f) {
            SIMD for (num w = 0; w < words; w++) row[w] *= scale;
        }
        const float largest = largest_of(row, words);
        const float score = label == ignore ? 0 : row[label] - largest;
        const float total = exponentials(row, share ? row : 0, words, 1.0f, largest);
        const float log_total = logf(total);
        lse[r] = largest + log_total;
        nll[r] = label == ignore ? 0 : log_total - score;
        if (!share) continue;
        const float label_share = share[r] * scale;
        const float word_share = label_share * (1.0f + 2.0f * z_loss * lse[r]) / total;
        SIMD for (num w = 0; w < words; w++) row[w] *= word_share;
        if (label != ignore) row[label] -= label_share;
    }
}

/* KL(teacher || student) of each row of logits times a scale each; with_gradient the student's become share * scale *
 * (p_student - p_teacher), 0 where share is. A word that the teacher excludes adds nothing. */
void kl_rows(float *student, const float *teacher, const float *share, float *kl, num rows, num words,
             num student_stride, num teacher_stride, float scale, float teacher_scale, int with_gradient, int threads) {
    PARALLEL
    for (num r = 0; r < rows; r++) {
        float *s = student + r * student_stride;
        const float *t = teacher + r * teacher_stride;
        SIMD for (num w = 0; w < words; w++) s[w] *= scale;
        const float largest = largest_of(s, words), total = exponentials(s, 0, words, 1.0f, largest);
        /* Of the teacher's logits before their scale, which is positive. */
        const float teacher_largest = largest_of(t, words) * teacher_scale;
        const float teacher_total = exponentials(t, 0, words, teacher_scale, teacher_largest);
        const float log_total = logf(total), teacher_log_total = logf(teacher_total);
        const float inverse = 1.0f / total, teacher_inverse = 1.0f / teacher_total;
        const float slope = share[r] * scale;
        const float distance = log_total - teacher_log_total;
        double sum = 0;
        for (num start = 0; start < words; start += RUN) {
            const num stop = start + RUN < words ? start + RUN : words;
            float part = 0;
            _Pragma("omp simd reduction(+ : part)") for (num w = start; w < stop; w++) {
                const float teacher_log = t[w] * teacher_scale - teacher_largest;
                const float probability = exponential(teacher_log) * teacher_inverse;
                const float term = probability * (teacher_log - (s[w] - largest) + distance);
                part += probability == 0.0f ? 0.0f : term;
            }
            sum += part;
            if (!with_gradient) continue;
            SIMD for (num w = start; w < stop; w++) {
                const float probability = exponential(t[w] * teacher_scale - teacher_largest) * teacher_inverse;
                const float gradient = (exponential(s[w] - largest) * inverse - probability) * slope;
                s[w] = slope == 0.0f ? 0.0f : gradient;
            }
        }
        kl[r] = (float)sum;
    }
}
