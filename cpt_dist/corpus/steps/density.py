"""How well a text compresses, compared with ordinary prose of its length: too well is boilerplate, not at all is noise.

Short texts always compress badly, as nothing stands before that could repeat; so the ratio is divided by what prose
of that length has. That curve was measured on English prose (docs/curation_steps.md says how).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import zstandard

from cpt_dist.corpus.steps.text_view import TextView

LEVEL = 3
BLOCK_BYTES = 1 << 16
"""Longer texts are compressed in blocks of this size, so that length plays no part from here on."""
CURVE_BYTES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
CURVE_RATIOS = (1.141, 0.836, 0.703, 0.633, 0.56, 0.504, 0.461, 0.431, 0.405, 0.375, 0.356)
"""Median of compressed / original size of English prose of so many bytes at this level."""


@lru_cache(maxsize=1)
def _compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=False, write_content_size=False)


def compression_ratio(data: bytes) -> float:
    """Compressed / original size, in blocks of BLOCK_BYTES (zstd)."""
    blocks = [data[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES)]
    return sum(len(_compressor().compress(block)) for block in blocks) / max(len(data), 1)


def expected_ratio(num_bytes: int) -> float:
    """What prose of so many bytes compresses to, by straight lines over the logarithm of the length."""
    return float(np.interp(np.log2(max(num_bytes, 1)), np.log2(CURVE_BYTES), CURVE_RATIOS))


def density(view: TextView) -> float:
    """compression_ratio / expected_ratio: 1 is ordinary prose, 0.3 boilerplate or a list, 1.5 noise or base64."""
    return compression_ratio(view.data) / expected_ratio(len(view.data))
