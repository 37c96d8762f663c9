"""Languages whose best possible bits per byte is known, and models that are such a language.

A chain's code of a text is a product of its probabilities, the grammar's comes from the inside algorithm (Baker 1979;
Lari and Young 1990). `chain_model` writes the chain down as weights of an ordinary Llama, so every part of the program
can load an oracle as it loads any other model.
"""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.tokenizer import EOS, tiny_tokenizer

_NEVER = -60.0
"""Log-probability of what can't follow: it adds e^-60 to a sum."""


@dataclass(frozen=True)
class Chain:
    """A Markov chain over letters of one byte, which begins in its stationary distribution."""

    letters: str
    follows: np.ndarray
    """Probability of each letter (columns) after each (rows), [letters, letters]."""

    @classmethod
    def random(cls, letters, seed, concentration=0.3):
        """Rows from a Dirichlet distribution, each probability at least a thousandth."""
        rows = np.random.default_rng(seed).dirichlet(np.full(len(letters), concentration), len(letters)) + 1e-3
        return cls(letters, rows / rows.sum(axis=1, keepdims=True))

    def blurred(self, share):
        """A worse model of the same text: with probability `share` the next letter is any one."""
        return replace(self, follows=(1 - share) * self.follows + share / len(self.letters))

    @cached_property
    def first(self):
        """The stationary distribution, [letters]."""
        size = len(self.letters)
        equations = np.vstack([self.follows.T - np.eye(size), np.ones(size)])
        return np.linalg.lstsq(equations, np.append(np.zeros(size), 1.0), rcond=None)[0]

    @property
    def entropy_rate(self):
        """Bits of a letter, in the mean, after the letter before it: what no model can beat."""
        return float(-(self.first[:, None] * self.follows * np.log2(self.follows)).sum())

    def excess_of(self, other):
        """Bits of a letter by which the code of `other` is longer in the mean."""
        return float((self.first[:, None] * self.follows * np.log2(self.follows / other.follows)).sum())

    def document(self, rng, length):
        place = rng.choice(len(self.letters), p=self.first)
        places = [place]
        bounds, draws = self.follows.cumsum(axis=1), rng.random(length - 1)
        for draw in draws:
            place = min(int(np.searchsorted(bounds[place], draw)), len(self.letters) - 1)
            places.append(place)
        return "".join(self.letters[place] for place in places)

    def bits(self, text):
        """Length of the text's ideal code."""
        places = [self.letters.index(letter) for letter in text]
        return float(-np.log2([self.first[places[0]], *self.follows[places[:-1], places[1:]]]).sum())


@dataclass(frozen=True)
class Sums:
    """An ambiguous grammar: E -> E + E | ( E ) | x | y, and sentences E; of it."""

    plus: float = 0.25
    bracket: float = 0.15
    x: float = 0.4

    def document(self, rng, sentences):
        return "".join(f"{self._expression(rng)};" for _ in range(sentences))

    def _expression(self, rng):
        draw = rng.random()
        if draw < self.plus:
            return f"{self._expression(rng)}+{self._expression(rng)}"
        if draw < self.plus + self.bracket:
            return f"({self._expression(rng)})"
        return "x" if draw < self.plus + self.bracket + self.x else "y"

    def bits(self, text):
        """Length of the ideal code of whole sentences: all derivations of each count."""
        return float(-sum(np.log2(self.inside(sentence)) for sentence in text.rstrip(";").split(";")))

    def inside(self, sentence):
        """Probability that E derives the sentence, by the inside algorithm."""
        size = len(sentence)
        leaf = {"x": self.x, "y": 1 - self.plus - self.bracket - self.x}
        chart = np.zeros((size + 1, size + 1))
        for length in range(1, size + 1):
            for start in range(size - length + 1):
                stop = start + length
                part = sentence[start:stop]
                found = leaf.get(part, 0.0)
                if length > 2 and part[0] == "(" and part[-1] == ")":
                    found += self.bracket * chart[start + 1, stop - 1]
                for middle in range(start + 1, stop - 1):
                    if sentence[middle] == "+":
                        found += self.plus * chart[start, middle] * chart[middle + 1, stop]
                chart[start, stop] = found
        return float(chart[0, size])


def pair_tokenizer(folder, chains):
    """A tokenizer whose tokens are any two letters of one of the chains."""
    names = [EOS, "<unknown>", *(a + b for chain in chains for a in chain.letters for b in chain.letters)]
    names += [f"<filler{index}>" for index in range(len(names) % 2)]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(".."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(EOS, special=True)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def chain_model(folder, *chains, pairs=False):
    """A Llama whose probabilities are those of the chains, each of which begins a document equally often.

    A token is a byte, or with `pairs` two letters. Attention and MLP add nothing; the embedding of a token is its own
    direction, and the head has the logarithms of what may follow it.
    """
    folder = Path(folder)
    pair_tokenizer(folder, chains) if pairs else tiny_tokenizer(folder, vocab_size=258)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    log = np.full((size, size), _NEVER)
    for chain in chains:
        first, follows = np.log(chain.first / len(chains)), np.log(chain.follows)
        letters = range(len(chain.letters))
        end = tokenizer.token_to_id(EOS)
        if pairs:
            ids = {(a, b): tokenizer.token_to_id(chain.letters[a] + chain.letters[b]) for a in letters for b in letters}
            for (a, b), token in ids.items():
                log[end, token] = first[a] + follows[a, b]
                for (c, d), after in ids.items():
                    log[token, after] = follows[b, c] + follows[c, d]
        else:
            tokens = [tokenizer.token_to_id(letter) for letter in chain.letters]
            log[end, tokens] = first
            log[np.ix_(tokens, tokens)] = follows
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        # What RMSNorm makes of a one is 1 / sqrt(1 / size + eps).
        model.lm_head.weight.copy_(torch.tensor(log.T * np.sqrt(1 / size + config.rms_norm_eps)))
    model.save_pretrained(folder)
    return folder


def prepare_texts(folder, model, sources, held_out_fraction=0.5):
    """Shards of `sources`, name -> (role, texts), under the tokenizer of `model`; gives the configuration of a run."""
    from cpt_dist.data.prepare import prepare
    from tests.helpers.corpora import write_jsonl
    from tests.helpers.in_process import typed

    folder = Path(folder)
    config = {
        "model": {"path": str(model)},
        "data": {
            "shards": str(folder / "shards"),
            "held_out_fraction": held_out_fraction,
            "sources": {
                name: {"raw": [str(write_jsonl(folder / "raw" / f"{name}.jsonl", texts))], "role": role}
                for name, (role, texts) in sources.items()
            },
        },
        "evaluation": {"max_tokens": "100k", "seq_len": 128, "during_training": False, "bootstrap": 500},
        "evaluate": {"batch_tokens": "4k", "base": str(model), "adapted": str(model), "out": str(folder / "out")},
        "engine": {"precision": "fp32", "threads": 1},
    }
    prepare(typed(config, folder / "run"))
    return config
