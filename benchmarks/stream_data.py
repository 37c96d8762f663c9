"""Real token data for benchmarks/stream.py: the demo's two corpora, tokenised, as four sources of one shard each.

The texts are in the packages of the `demo` extra (ICD-10-CM and State of the Union addresses); the tokenizer, a
byte-level BPE of 16,384 tokens, is trained on them on the spot. Everything is made once per folder.
"""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from cpt_dist.data.shard_writer import Document, Part, write_shard
from cpt_dist.data.shards import FORMAT
from cpt_dist.files import fingerprint, write_json
from demo.corpora import icd10cm, sotu

SEPARATOR = "<|end|>"
VOCABULARY = 16_384


def make_sources(work: Path) -> list[dict[str, str]]:
    """Four sources under `work`, each as a folder of this project's shards and as .npy of tokens and offsets.

    Each corpus gives two, by alternate documents. Returns paths by "shards", "tokens" (u16) and "offsets" (int64).
    """
    result = [
        {
            "shards": str(work / "shards" / f"source{number}"),
            "tokens": str(work / f"tokens{number}.npy"),
            "offsets": str(work / f"offsets{number}.npy"),
        }
        for number in range(4)
    ]
    if not all((Path(source["shards"]) / "manifest.json").exists() for source in result):
        corpora = [[document["text"] for document in corpus()] for corpus in (sotu, icd10cm)]
        tokenizer = _trained(itertools.chain(*corpora))
        separator = tokenizer.token_to_id(SEPARATOR)
        for number, source in enumerate(result):
            texts = corpora[number % 2][number // 2 :: 2]
            encodings = tokenizer.encode_batch_fast(texts)
            write_source(source, texts, [[*encoding.ids, separator] for encoding in encodings], separator)
    return result


def _trained(texts: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Every fourth document: enough for the merges, in a few seconds.
    tokenizer.train_from_iterator(itertools.islice(texts, 0, None, 4), trainer)
    return tokenizer


def write_source(source: dict[str, str], texts: list[str], tokens: list[list[int]], separator: int) -> None:
    """Write the documents of a source in the forms that `make_sources` names."""
    folder = Path(source["shards"])
    folder.mkdir(parents=True, exist_ok=True)
    part = Part(np.uint16)
    for index, (text, ids) in enumerate(zip(texts, tokens, strict=True)):
        content = text.encode()
        document_id = hashlib.md5(content, usedforsecurity=False).digest()
        part.add(Document(document_id, "", len(content), "benchmark", index, None), ids)
    entry = write_shard(folder / "shard-00000.safetensors", part)
    np.save(source["tokens"], np.concatenate(part.tokens))
    np.save(source["offsets"], np.cumsum([0, *map(len, part.tokens)], dtype=np.int64))
    manifest: dict[str, Any] = {"format": FORMAT, "source": folder.name, "role": "domain", "licence": "public domain"}
    manifest["tokenizer"] = {"fingerprint": "benchmark", "vocab_size": VOCABULARY, "separator_id": separator}
    manifest |= {"tokens": part.num_tokens, "documents": len(part.documents), "shards": [entry], "held_out": []}
    write_json(folder / "manifest.json", manifest | {"fingerprint": fingerprint(manifest)})
