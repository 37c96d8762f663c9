"""A tiny byte-level fast tokenizer, saved as a model folder has it."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

EOS, BOS = "<|end|>", "<|start|>"


def tiny_tokenizer(folder, adds_bos=False, vocab_size=259):
    """Write tokenizer.json and tokenizer_config.json: one token a byte, EOS and BOS first, fillers up to vocab_size."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = [EOS, BOS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    names += [f"<filler{index}>" for index in range(vocab_size - len(names))]
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(EOS, special=True), AddedToken(BOS, special=True)])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "bos_token": BOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
