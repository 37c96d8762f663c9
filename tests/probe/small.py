"""A task that a tiny model learns in seconds, and the configuration of a probe on it."""

import random

from omegaconf import OmegaConf

from cpt_dist.config import CptConfig
from tests.evaluation.suites.small import model_folder, suite_file, write_rows

ANSWERS = {"bone": "hard", "vein": "blue", "cell": "tiny"}


def rows(number, seed):
    """What a word stands for, after a number that doesn't matter."""
    rng = random.Random(seed)
    choices = list(ANSWERS.values())
    words = [rng.choice(list(ANSWERS)) for _ in range(number)]
    return [
        {"query": f"{rng.randrange(10**6)} {word}", "choices": choices, "gold": choices.index(ANSWERS[word])}
        for word in words
    ]


def write_task(folder, items=60, examples=400):
    """gold.yaml with its items and train.jsonl in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    suite_file(folder, "gold", rows(items, 1), capability="knowledge")
    write_rows(folder / "train.jsonl", rows(examples, 2))
    return folder


def base_model(folder):
    return model_folder(folder)


def configured(folder, base, adapted=None, **probe):
    """The configuration of a probe of models in `folder`, which holds the task too."""
    mapping = {
        "run_dir": str(folder / "run"),
        "model": {"path": str(base)},
        "evaluate": {"adapted": str(adapted or base)},
        "data": {"shards": ""},
        "engine": {"precision": "fp32", "threads": 1, "micro_batch": 8, "timeout_seconds": 60},
        "evaluation": {"bootstrap": 500},
        "logging": {"peak_tflops": 1.0},
        "consolidate": {"workers": 1, "check_logits": False},
        "probe": {
            "data": str(folder / "train.jsonl"),
            "gold": str(folder / "gold.yaml"),
            "learning_rate": 3e-3,
            "epochs": 4.0,
            "batch_tokens": "1024",
            "seq_len": 128,
            "out": str(folder / "probe"),
        }
        | probe,
    }
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), mapping))
    assert isinstance(config, CptConfig)
    return config
