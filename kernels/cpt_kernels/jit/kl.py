"""Rows of KL(teacher || student) from two blocks of logits, and the gradient by the student's in their memory.

One program a row: the first pass over both rows finds their log-sum-exps by the online softmax, the second adds up the
divergence and writes the gradient.
"""

import triton
import triton.language as tl

from cpt_kernels.jit.cross_entropy import _capped

LOWEST: tl.constexpr = tl.constexpr(-3.0e38)


@triton.jit
def kl_rows(
    student_pointer,
    teacher_pointer,
    share_pointer,
    kl_pointer,
    student_stride,
    teacher_stride,
    num_words,
    student_scale,
    teacher_scale,
    student_softcap,
    teacher_softcap,
    inverse_temperature,
    HAS_STUDENT_SOFTCAP: tl.constexpr,
    HAS_TEACHER_SOFTCAP: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    students = student_pointer + row * student_stride
    teachers = teacher_pointer + row * teacher_stride
    student_largest = tl.full([], LOWEST, tl.float32)
    teacher_largest = tl.full([], LOWEST, tl.float32)
    student_total = tl.full([], 0.0, tl.float32)
    teacher_total = tl.full([], 0.0, tl.float32)
    for start in range(0, num_words, BLOCK):
        word = start + tl.arange(0, BLOCK)
        inside = word < num_words
        raw = tl.load(students + word, mask=inside, other=0.0).to(tl.float32)
        x = _capped(raw, student_scale, student_softcap, HAS_STUDENT_SOFTCAP) * inverse_temperature
        x = tl.where(inside, x, float("-inf"))
        new = tl.maximum(student_largest, tl.max(x, 0))
        student_total = student_total * tl.exp(student_largest - new) + tl.sum(tl.exp(x - new), 0)
        student_largest = new
        raw = tl.load(teachers + word, mask=inside, other=0.0).to(tl.float32)
        x = _capped(raw, teacher_scale, teacher_softcap, HAS_TEACHER_SOFTCAP) * inverse_temperature
        x = tl.where(inside, x, float("-inf"))
        new = tl.maximum(teacher_largest, tl.max(x, 0))
        teacher_total = teacher_total * tl.exp(teacher_largest - new) + tl.sum(tl.exp(x - new), 0)
        teacher_largest = new
    student_log = tl.log(student_total)
    teacher_log = tl.log(teacher_total)
    share = tl.load(share_pointer + row)
    divergence = tl.full([], 0.0, tl.float32)
    for start in range(0, num_words, BLOCK):
        word = start + tl.arange(0, BLOCK)
        inside = word < num_words
        raw = tl.load(teachers + word, mask=inside, other=0.0).to(tl.float32)
        x = _capped(raw, teacher_scale, teacher_softcap, HAS_TEACHER_SOFTCAP) * inverse_temperature
        teacher_score = (x - teacher_largest) - teacher_log
        raw = tl.load(students + word, mask=inside, other=0.0).to(tl.float32)
        capped = _capped(raw, student_scale, student_softcap, HAS_STUDENT_SOFTCAP)
        student_score = (capped * inverse_temperature - student_largest) - student_log
        probability = tl.exp(teacher_score)
        # A word that the teacher excludes adds nothing, whatever the student says.
        term = tl.where(probability == 0.0, 0.0, probability * (teacher_score - student_score))
        divergence += tl.sum(tl.where(inside, term, 0.0), 0)
        if WITH_GRADIENT:
            gradient = (tl.exp(student_score) - probability) * (share * student_scale * inverse_temperature)
            if HAS_STUDENT_SOFTCAP:
                gradient = gradient * (1.0 - (capped / student_softcap) * (capped / student_softcap))
            tl.store(students + word, tl.where(share == 0.0, 0.0, gradient), mask=inside)
    tl.store(kl_pointer + row, divergence)
