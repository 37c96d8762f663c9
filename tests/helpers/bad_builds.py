"""Compiles kernels with bad constants and prints what is wrong with their figures, as JSON."""

import json
import os
import tempfile
from dataclasses import replace

from cpt_kernels.verify.ahead_of_time import compiled, problems
from cpt_kernels.verify.builds import BUILDS, Build


def main():
    attention = replace(next(one for one in BUILDS if one.kernel == "attention_forward"), dtype="fp32")
    entropy = Build("cross_entropy_forward", "cross_entropy", 131072, {"HAS_SOFTCAP": False})
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        tf32 = compiled(attention, "sm_80", {"PRECISION": "tf32"})
        found["tf32"] = problems(attention, "sm_80", tf32, None)
        spill = compiled(entropy, "sm_80", {"BLOCK": 65536})
        found["spill"] = problems(entropy, "sm_80", spill, None)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
