"""A tiny model, two prepared sources and the configuration of a run on them."""

import json
import random
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
WORDS = [f"w{number:03d}" for number in range(990)]


def write_tokenizer(folder):
    """A word-level tokenizer of 1001 tokens (a prime vocabulary divides by no world size) with an end of text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    names = ["<|end|>", "<|unknown|>", *WORDS, *(f"<|spare{number}|>" for number in range(9))]
    tokenizer = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(Path(folder) / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))


def write_corpus(path, first_word, num_documents, seed):
    """Documents of 3 to 60 words, from a part of the vocabulary, so that a model can learn something."""
    rng = random.Random(seed)
    pool = WORDS[first_word : first_word + 50]
    with open(path, "w") as handle:
        for _ in range(num_documents):
            handle.write(json.dumps({"text": " ".join(rng.choices(pool, k=rng.randint(3, 60)))}) + "\n")


def build(folder, model_builder=None, **model_changes):
    """Make `folder`/model, raw text and shards; returns the experiment as a plain configuration."""
    from omegaconf import OmegaConf

    from cpt_dist.config import CptConfig
    from cpt_dist.data.prepare import prepare
    from tests.helpers.models import tiny_llama

    folder = Path(folder)
    (model_builder or tiny_llama)(folder / "model", **model_changes)
    write_tokenizer(folder / "model")
    write_corpus(folder / "domain.jsonl", 0, 300, seed=1)
    write_corpus(folder / "general.jsonl", 400, 200, seed=2)
    config = {
        "run_dir": str(folder / "run"),
        "model": {"path": str(folder / "model")},
        "data": {
            "shards": str(folder / "shards"),
            "held_out_fraction": 0.05,
            "shard_tokens": "4k",
            "sources": {
                "domain": {"raw": [str(folder / "domain.jsonl")], "role": "domain"},
                "general": {"raw": [str(folder / "general.jsonl")], "role": "replay"},
            },
        },
        "schedule": {"name": "cosine", "peak_lr": 1e-2, "warmup": 0.2},
        "stages": [
            {
                "name": "main",
                "tokens": "5120",
                "seq_len": 64,
                "batch_tokens": "256",
                "mixture": {"domain": 0.7, "general": 0.3},
            }
        ],
        "checkpoint": {"every_steps": 0},
        "evaluation": {"max_tokens": "200", "seq_len": 64, "during_training": False},
        "evaluate": {"batch_tokens": "256"},
        "engine": {"precision": "fp32", "threads": 1, "timeout_seconds": 60},
        "logging": {"peak_tflops": 0.05},
    }
    typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), config))
    prepare(typed)
    return config


def write_experiment(folder, config, name="tiny"):
    """Save the configuration as experiment=`name` for launch scripts given --config-dir=`folder`/configs."""
    path = Path(folder) / "configs" / "experiment" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# @package _global_\n" + yaml.safe_dump(config))
    return path.parents[1]


def command(launcher, processes, script, *arguments):
    """The words of a launch: launcher is python, torchrun or deepspeed."""
    script = str(ROOT / "launch" / script)
    binaries = Path(sys.executable).parent
    if launcher == "python":
        return [sys.executable, script, *arguments]
    if launcher == "torchrun":
        options = ["--nnodes", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        return [str(binaries / "torchrun"), *options, "--nproc-per-node", str(processes), script, *arguments]
    port = str(random.randint(20000, 40000))
    return [str(binaries / "deepspeed"), "--num_gpus", str(processes), "--master_port", port, script, *arguments]


def launch(launcher, processes, script, *arguments, check=True, timeout=480, **options):
    """Run a launch script as a user would, with the output captured."""
    done = subprocess.run(
        command(launcher, processes, script, *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )
    if check and done.returncode:
        raise AssertionError(f"exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}")
    return done


def read_metrics(run_dir, kind="step"):
    """The records of a kind; of steps that were made twice, the last."""
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == kind]
    return [record for _, record in sorted({record["step"]: record for record in records}.items())]
