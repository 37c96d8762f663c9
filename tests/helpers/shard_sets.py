"""Sources written with the real shard writer from random tokens, without text and tokenizer: large ones are quick."""

import json
from pathlib import Path

import numpy as np
import xxhash
from safetensors.numpy import save

from cpt_dist.data.shard_writer import Document, Part, write_held_out, write_provenance, write_shard
from cpt_dist.data.shards import FORMAT
from cpt_dist.files import fingerprint, write_json


def write_source(folder, shards, num_held_out=4, tokenizer="f" * 32):
    """A complete source in `folder`, named after it; `shards` is the lengths in tokens of each shard's documents."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(shards))
    files = {"shards": [], "held_out": [], "provenance": []}
    for number, lengths in enumerate(shards):
        part = Part(np.uint16)
        for length in lengths:
            tokens = np.append(rng.integers(1, 60_000, length - 1), 0)
            part.add(Document(rng.bytes(16), "", length, "raw", len(part.documents), 0), tokens)
        for _ in range(num_held_out):
            text = f"held out {rng.integers(10**9)}"
            part.hold_out(Document(rng.bytes(16), text, len(text), "raw", 0, 0))
        files["shards"].append(write_shard(folder / f"shard-{number:05d}.safetensors", part))
        files["provenance"].append(
            write_provenance(folder / f"provenance-{number:05d}.parquet", part, folder.name, "CC0-1.0", "en")
        )
        if num_held_out:
            files["held_out"].append(write_held_out(folder / f"held_out-{number:05d}.jsonl.zst", part, folder.name))
    _write_manifest(folder, files, sum(map(len, shards)), sum(map(sum, shards)), num_held_out * len(shards), tokenizer)
    return folder


def write_wide_source(folder, num_documents=20_000, document_tokens=34, block_bytes=1 << 14):
    """A source of one shard of 118 small blocks, so that every tensor has some of its own; nothing is held out."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    num_tokens = num_documents * document_tokens
    content = save(
        {
            "tokens": rng.integers(1, 60_000, num_tokens).astype(np.uint16),
            "doc_offsets": np.arange(0, num_tokens + 1, document_tokens, dtype=np.uint64),
            "doc_id": rng.integers(0, 256, (num_documents, 16)).astype(np.uint8),
            "doc_bytes": np.full(num_documents, document_tokens, dtype=np.uint32),
        },
        metadata={"made by": "a test"},  # of a length that leaves the header some padding
    )
    blocks = [xxhash.xxh3_64_hexdigest(content[at : at + block_bytes]) for at in range(0, len(content), block_bytes)]
    entry = {"file": "shard-00000.safetensors", "bytes": len(content), "documents": num_documents}
    entry |= {"tokens": num_tokens, "block_bytes": block_bytes, "blocks": blocks}
    (folder / entry["file"]).write_bytes(content)
    files = {"shards": [entry], "held_out": [], "provenance": []}
    _write_manifest(folder, files, num_documents, num_tokens, 0, "f" * 32)
    return folder


def _write_manifest(folder, files, kept, num_tokens, held_out, tokenizer):
    manifest = {
        "format": FORMAT,
        "source": folder.name,
        "role": "domain",
        "licence": "CC0-1.0",
        "language": "en",
        "tokenizer": {"fingerprint": tokenizer, "vocab_size": 60_000, "separator_id": 0, "bos_id": None},
        "dtype": "uint16",
        "pipeline": {},
        "counts": {"read": kept + held_out + 3, "kept": kept, "held_out": held_out, "dropped": {"duplicate": 3}},
        "tokens": num_tokens,
        "documents": kept,
        **files,
    }
    write_json(folder / "manifest.json", {**manifest, "fingerprint": fingerprint(manifest)})


def edit_manifest(folder, change):
    """Apply `change` to the manifest and give it the fingerprint of the result."""
    path = Path(folder) / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest.pop("fingerprint")
    path.write_text(json.dumps({**manifest, "fingerprint": fingerprint(manifest)}))
