"""Small raw corpora and the configuration that prepares them."""

import json
from pathlib import Path

from cpt_dist.config import CptConfig, DataConfig, SourceConfig
from tests.helpers.tokenizer import tiny_tokenizer


def write_jsonl(path, texts):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [text if isinstance(text, bytes) else json.dumps({"text": text}).encode() for text in texts]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def corpus_config(folder, sources, **data):
    """A configuration with a tiny tokenizer and one JSONL source for each name -> texts (bytes are raw lines)."""
    folder = Path(folder)
    if not (folder / "tokenizer").exists():
        tiny_tokenizer(folder / "tokenizer")
    raw = {name: str(write_jsonl(folder / "raw" / f"{name}.jsonl", texts)) for name, texts in sources.items()}
    settings = {"shards": str(folder / "shards"), "tokenizer": str(folder / "tokenizer"), "held_out_fraction": 0.2}
    named = {name: SourceConfig(raw=[path], licence="CC0-1.0", language="en") for name, path in raw.items()}
    return CptConfig(data=DataConfig(sources=named, **settings | data))
