"""Token data written by the real packages; run by an interpreter that has them: peer_writers.py FORMAT FOLDER.

Reads FOLDER/documents.json (lists of token ids). Imports nothing of this project.
"""

import json
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path


def megatron(folder, documents):
    """Written by megatron-core's IndexedDatasetBuilder, the last document in two sequences."""
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(folder / "peer.bin"), dtype=np.uint16)
    for document in documents[:-1]:
        builder.add_document(torch.tensor(document), [len(document)])
    last = documents[-1]
    builder.add_document(torch.tensor(last), [len(last) // 2, len(last) - len(last) // 2])
    builder.finalize(str(folder / "peer.idx"))


def datatrove(folder, documents):
    """Written by datatrove's TokenizedFile, which its tokenizer step writes through."""
    from datatrove.pipeline.tokens.tokenizer import TokenizedFile

    file = TokenizedFile(str(folder), "peer.ds", save_index=True, save_final_metadata=True, token_size=2)
    for document in documents:
        file.write(document, None)
    file.close()


def mds(folder, documents):
    """Written by streaming's MDSWriter, several shards, compressed."""
    import numpy as np

    # streaming imports torchvision for its image data sets, and that one needs the GPU build of torch.
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)
    sys.modules["torchvision.datasets"].VisionDataset = object
    sys.modules["torchvision.transforms.functional"].to_tensor = None
    from streaming import MDSWriter

    columns = {"name": "str", "tokens": "ndarray:uint16"}
    with MDSWriter(out=str(folder / "peer"), columns=columns, compression="zstd", size_limit=2000) as writer:
        for index, document in enumerate(documents):
            writer.write({"name": f"document {index}", "tokens": np.array(document, dtype=np.uint16)})


if __name__ == "__main__":
    place = Path(sys.argv[2])
    globals()[sys.argv[1]](place, json.loads((place / "documents.json").read_text()))
