"""Writers of other programs' token formats, from their public definitions: independent of the readers under test."""

import json
import struct
from pathlib import Path

import numpy as np
import zstandard


def write_megatron(prefix, documents, dtype="int32", sequences_per_document=1):
    """`prefix`.bin and .idx; each document is cut into that many sequences."""
    codes = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}
    sequences = [part for d in documents for part in np.array_split(np.array(d, dtype), sequences_per_document)]
    lengths = [len(sequence) for sequence in sequences]
    pointers = np.cumsum([0, *(n * np.dtype(dtype).itemsize for n in lengths)])[:-1]
    bounds = np.arange(0, len(sequences) + 1, sequences_per_document)
    Path(f"{prefix}.bin").write_bytes(b"".join(sequence.tobytes() for sequence in sequences))
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, codes[dtype], len(lengths), len(bounds))
    arrays = [np.array(lengths, "<i4"), np.array(pointers, "<i8"), np.array(bounds, "<i8")]
    Path(f"{prefix}.idx").write_bytes(header + b"".join(array.tobytes() for array in arrays))
    return Path(f"{prefix}.idx")


def write_datatrove(path, documents, token_bytes=2):
    """`path` (.ds) and its .index."""
    path = Path(path)
    path.write_bytes(b"".join(np.array(d, f"<u{token_bytes}").tobytes() for d in documents))
    ends = np.cumsum([len(d) for d in documents])
    Path(f"{path}.index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends))
    return path


def write_mds(folder, documents, encoding="ndarray:uint32", shard_documents=7, compress=False):
    """A folder of shards with a text column, a column of tokens and a number, and index.json."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    parts = encoding.split(":")
    shards = []
    for number, first in enumerate(range(0, len(documents), shard_documents)):
        samples = []
        for index, document in enumerate(documents[first : first + shard_documents]):
            tokens = np.array(document, "int64" if encoding == "bytes" else parts[1] if len(parts) > 1 else "int64")
            column = tokens.tobytes()
            if parts[0] == "ndarray" and len(parts) < 3:
                wide = len(document) > 255
                shape = bytes([(1 << 2) | wide]) + struct.pack("<H" if wide else "<B", len(document))
                column = shape + column
            if encoding == "ndarray":
                column = bytes([65]) + column
            name = f"name {index}".encode()
            sizes = [len(name)] if len(parts) == 3 else [len(name), len(column)]
            samples.append(struct.pack(f"<{len(sizes)}I", *sizes) + name + column + struct.pack("<q", index))
        config = json.dumps({"made by": "a test"}).encode()
        begin = 4 + 4 * (len(samples) + 1) + len(config)
        offsets = np.cumsum([begin, *map(len, samples)])
        raw = struct.pack(f"<I{len(offsets)}I", len(samples), *offsets) + config + b"".join(samples)
        file = f"shard.{number:05d}.mds"
        (folder / (file + ".zstd" * compress)).write_bytes(zstandard.compress(raw) if compress else raw)
        fixed = 8 * int(parts[2]) if len(parts) == 3 else None
        shards.append(
            {
                "format": "mds",
                "column_names": ["name", "tokens", "number"],
                "column_encodings": ["str", encoding, "int"],
                "column_sizes": [None, fixed, 8],
                "compression": "zstd:3" if compress else None,
                "samples": len(samples),
                "raw_data": {"basename": file, "bytes": len(raw), "hashes": {}},
                "zip_data": {"basename": f"{file}.zstd", "bytes": 0, "hashes": {}} if compress else None,
            }
        )
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return folder
