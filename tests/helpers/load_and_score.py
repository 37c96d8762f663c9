"""Load a model folder with whatever transformers this interpreter has: load_and_score.py FOLDER OUT.

Writes the rotary frequencies and the logits of 300 fixed tokens as safetensors. Imports nothing of this project.
"""

import sys

import torch
import transformers
from safetensors.torch import save_file


def main(folder, out):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval().float()
    with torch.no_grad():
        logits = model(input_ids=torch.arange(1, 301)[None] % 1000, use_cache=False).logits[0]
    save_file({"inv_freq": model.model.rotary_emb.inv_freq.float(), "logits": logits}, out)
    print(transformers.__version__)


if __name__ == "__main__":
    main(*sys.argv[1:])
