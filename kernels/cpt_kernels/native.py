"""The C kernels of a CPU (`native*.c`): compiled on the machine that runs them, kept, tried and called.

A compiler is not needed to install this package; where there is none, the backend `native` says so and torch computes.
It is no torch extension, whose headers take a compiler half a minute: the functions take plain pointers, and a file of
theirs is ready in seconds. They share torch's OpenMP threads, since libgomp is loaded once in a process.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cpt_kernels.registry import Backend, Spec
from cpt_kernels.triton_support import interpreting

logger = logging.getLogger(__name__)

HEADER, *SOURCES = (Path(__file__).with_name(name) for name in ("native.h", "native.c", "native_attention.c"))
COMPILERS = ("gcc", "cc", "clang")
# Without -ffast-math: it takes NaN and infinity for impossible, and makes a library change how the process rounds.
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
PARALLEL_FROM = 1 << 14
"""Elements from which on a call is shared by threads."""
COMPILER_SECONDS = 120
ROWS_OF_A_PARTIAL_SUM = 64
"""As in native.c."""
QUERIES_OF_A_BLOCK = 64
SCRATCH_OF_A_THREAD = (2 * (512 + 16) + 3) * QUERIES_OF_A_BLOCK
"""As in native_attention.c."""
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float, "i": ctypes.c_int}
# Pointers, sizes and strides, floats, ints; the last is the number of threads.
_SIGNATURES = {
    "rms_norm_forward": "pppppp nnnn ff i",
    "rms_norm_backward": "ppppppp nnnnn f i",
    "swiglu_forward": "ppp nnnn i",
    "swiglu_backward": "ppppp nnnnn i",
    "rope_turn": "ppppp nnnnnnnnnnn f i",
    "cross_entropy_rows": "ppppp nnnn ff i",
    "kl_rows": "pppp nnnn ff ii",
    "attention_forward": "pppppppppnnnnnnnnnnnn f i",
    "attention_backward": "pppppppppppppp nnnnnnnnnnnnnn f i",
}


def cache_folder() -> Path:
    """Where what is made for this machine is kept: CPT_KERNELS_CACHE, by default ~/.cache/cpt_kernels."""
    folder = os.environ.get("CPT_KERNELS_CACHE")
    return Path(folder) if folder else Path.home() / ".cache" / "cpt_kernels"


@functools.cache
def _compiler() -> str | None:
    names = (os.environ["CC"],) if os.environ.get("CC") else COMPILERS
    return next((found for found in map(shutil.which, names) if found), None)


@functools.cache
def build_key() -> str:
    """Of the source, the compiler and this kind of CPU: a home folder may be shared by machines of several kinds."""
    version = subprocess.run([str(_compiler()), "--version"], capture_output=True, text=True, check=False).stdout
    try:
        cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        cpu = [platform.processor()]
    kind = sorted({line for line in cpu if line.startswith(("model name", "flags", "Features", "CPU part"))})
    sources = [path.read_text(encoding="utf-8") for path in (HEADER, *SOURCES)]
    text = "\n".join([*sources, *FLAGS, version, platform.machine(), *kind])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The functions, or why there are none."""
    compiler = _compiler()
    if compiler is None:
        return f"there is no C compiler ({' or '.join(COMPILERS)}) on this machine"
    try:
        folder = cache_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(folder)
        except OSError:
            folder = Path(tempfile.mkdtemp(prefix="cpt_kernels-"))
        path = folder / f"native-{build_key()}.so"
        if not path.exists():
            _compile(compiler, path)
        library = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        return f"the C kernels cannot be compiled or loaded: {str(error).splitlines()[0]}"
    for name, signature in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = [_TYPES[one] for one in signature.replace(" ", "")]
        function.restype = None
    return library


def _compile(compiler: str, path: Path) -> None:
    # Several processes of a job, on several hosts, may come here at once: each writes a file of its own.
    temporary = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}")
    words = [compiler, *FLAGS, *map(str, SOURCES), "-o", str(temporary), "-lm"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=COMPILER_SECONDS, check=False)
    if done.returncode:
        raise OSError((done.stderr.strip().splitlines() or ["no message"])[-1])
    temporary.replace(path)
    logger.info("compiled the C kernels with %s for this CPU: %s", compiler, path)


def native_supports(spec: Spec) -> str | None:
    """None where the C kernels can run `spec`, else the reason. The first question for a CPU compiles them."""
    if spec.device != "cpu":
        return f"the C kernels run on a CPU, not on {spec.device}"
    if interpreting():
        return "TRITON_INTERPRET=1 is set, so the operations of this process run in Triton's interpreter; unset it"
    if spec.dtype != "float32":
        return f"the C kernels compute in float32, not in {spec.dtype}"
    if "softcap" in spec.features:
        return "the C kernel has no soft cap"
    found = _library()
    return found if isinstance(found, str) else None


@functools.cache
def sgemm_address() -> int | None:
    """That of torch's own BLAS routine, None where this build of torch shows none."""
    for path in sorted(Path(torch.__file__).parent.glob("lib/libtorch_cpu.*")):
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).sgemm_, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


def native_backend(
    operation: str, function: Callable[..., Any], supports: Callable[[Spec], str | None] = native_supports
) -> Backend:
    """The C backend of an operation, which has to pass its trial on this machine."""

    def vetted(spec: Spec) -> str | None:
        from cpt_kernels.verify.self_test import native_refusal

        return native_refusal(operation)

    return Backend("native", supports, function, vetted=vetted)


def is_native(tensor: Tensor) -> bool:
    """Whether an operation of this package that got `tensor` runs its C kernel; else it launches the Triton kernel."""
    return tensor.device.type == "cpu" and not interpreting()


def call(name: str, elements: int, *arguments: Any) -> None:
    """Run a C function that treats `elements` numbers; of a tensor it gets the address, None is null."""
    library = _library()
    assert not isinstance(library, str), library
    threads = torch.get_num_threads() if elements >= PARALLEL_FROM else 1
    plain = (one.data_ptr() if isinstance(one, Tensor) else one for one in arguments)
    getattr(library, name)(*plain, threads)
