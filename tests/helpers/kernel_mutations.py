"""Breaks kernels one at a time and says which checks see it: `python -m tests.helpers.kernel_mutations FILE`.

Run with TRITON_INTERPRET=1, in a process of its own: a kernel's mode is settled when it is imported.
"""

import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

MUTATIONS = {
    "a store without its mask": (
        "rms_norm",
        "tl.store(y_pointer + row * num_columns + column, x * rstd * weight, mask=inside)",
        "tl.store(y_pointer + row * num_columns + column, x * rstd * weight)",
        "accesses out of bounds",
    ),
    "programs that write one row": (
        "rms_norm",
        "partial_pointer + program * num_columns + column",
        "partial_pointer + column",
        "racing addresses",
    ),
    "an atomic sum": (
        "swiglu",
        "tl.store(grad_up_pointer + row * num_columns + column, grad_y * gate * sigmoid, mask=inside)",
        "tl.atomic_add(grad_up_pointer + row * num_columns + column, grad_y * gate * sigmoid, mask=inside)",
        "atomics",
    ),
    "arithmetic in 16 bits": (
        "swiglu",
        "tl.store(y_pointer + row * num_columns + column, gate * tl.sigmoid(gate) * up, mask=inside)",
        "half = (gate * tl.sigmoid(gate)).to(y_pointer.dtype.element_ty).to(tl.float32) * 1.004\n"
        "    tl.store(y_pointer + row * num_columns + column, half * up, mask=inside)",
        "error of y",
    ),
    "a slope without its second term": (
        "swiglu",
        "slope = sigmoid + gate * sigmoid * (1.0 - sigmoid)",
        "slope = sigmoid",
        "error of grad gate",
    ),
    "a sum that is not rescaled": (
        "cross_entropy",
        "total = total * tl.exp(largest - new)",
        "total = total",
        "error of loss",
    ),
    "weights that are not rescaled": (
        "attention",
        "total = total * rescale + tl.sum(weights, 1)",
        "total = total + tl.sum(weights, 1)",
        "error of out",
    ),
    "attention across documents": (
        "attention",
        "(key[None, :] >= first_key[:, None]) & there[None, :]",
        "there[None, :]",
        "error of out",
    ),
    "a mask that is off by one": (
        "cross_entropy",
        "x = tl.where(word < num_words,",
        "x = tl.where(word <= num_words,",
        "error of nll",
    ),
    "a backward turn forward": ("rope", "sine = -sine", "sine = sine", "error of grad query"),
    "an offset of 32 bits": (
        "rms_norm",
        "x = tl.load(x_pointer + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)\n    if HAS_RESIDUAL",
        "x = tl.load(x_pointer + (row * x_stride).to(tl.int32) + column, mask=inside, other=0.0).to(tl.float32)\n"
        "    if HAS_RESIDUAL",
        "accesses out of bounds",
    ),
}


def mutated(module, old, new, folder):
    """The module of `cpt_kernels.jit` with `old` replaced by `new` in its source."""
    original = importlib.import_module(f"cpt_kernels.jit.{module}")
    source = Path(original.__file__).read_text()
    assert source.count(old) == 1, f"{module} has {source.count(old)} places like {old!r}"
    path = Path(folder) / f"mutated_{module}_{len(os.listdir(folder))}.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    result = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(result)
    return original, result


def seen(operation, only, far):
    """What the checks of the small cases find wrong, until `only` is found."""
    from cpt_kernels.verify.case import check_accesses
    from cpt_kernels.verify.suite import cases_of, check

    found = set()
    if far:
        for case in cases_of(operation):
            if "far rows" in case.name:
                found |= {one.what for one in check_accesses(case, torch.float16) if not one.good}
        return found
    for finding in check(operation, large=False):
        if not finding.good:
            found.add(finding.what)
            if only in found:
                break
    return found


def main(out):
    np.seterr(all="ignore")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (module, old, new, expected) in MUTATIONS.items():
            original, broken = mutated(module, old, new, folder)
            kept = {key: value for key, value in vars(original).items() if key in vars(broken) and "__" not in key}
            vars(original).update({key: vars(broken)[key] for key in kept})
            try:
                operation = "document_attention" if module == "attention" else module
                results[name] = sorted(seen(operation, expected, far="32 bits" in name))
            finally:
                vars(original).update(kept)
    Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
