"""Rows that grow from stage to stage, a RoPE that changes with them, kills, other engines: one and the same run.

A tiny model is trained on rows of 256, 1,024 and 4,096 tokens. The run that is killed, inside of stages and at their
edges, and goes on each time on another number of ranks under the other engine, must have the losses, the samples and
the frequencies of a run that nobody killed.
"""

import copy
import json
import os
import random
import shutil
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from cpt_dist.config import CptConfig, ModelConfig
from cpt_dist.data.prepare import prepare
from cpt_dist.model.folder import read_model_config
from cpt_dist.model.load import load_model
from cpt_dist.model.model_files import write_export_config
from cpt_dist.model.rope import stage_ropes
from tests.helpers import tiny_run
from tests.helpers.worker import rope

pytestmark = [pytest.mark.e2e, pytest.mark.distributed, pytest.mark.timeout(1200)]

SEED = 20261123
ROPES = [None, {"type": "abf", "theta": 80000.0}, {"type": "yarn"}]
STEPS = [4, 3, 4]
FIRST_STEPS = [1, 5, 8]
"""Of the stages. The first edge (step 4) would be saved anyway, the second (step 7) is saved because it is one."""
TINY = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256}
ROWS = 3
KINDS = {"fsdp": {"name": "fsdp"}, "zero": {"name": "zero", "zero_stage": 3}}


def write_documents(path, first_word, seed):
    """Documents of 20 to 3,000 words, so that a row of any stage has some, and parts of some."""
    rng = random.Random(seed)
    pool = tiny_run.WORDS[first_word : first_word + 50]
    with open(path, "w") as handle:
        for _ in range(60):
            words = rng.choices(pool, k=round(20 * 150 ** rng.random()))
            handle.write(json.dumps({"text": " ".join(words)}) + "\n")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder, and the configuration of the three stages."""
    folder = tmp_path_factory.mktemp("three")
    config = tiny_run.build(folder, **TINY)
    for seed, (name, first_word) in enumerate({"domain": 0, "general": 400}.items()):
        write_documents(folder / f"{name}.jsonl", first_word, seed)
    config["data"] |= {"shards": str(folder / "long"), "shard_tokens": "64k"}
    config["checkpoint"] = {"every_steps": 2}
    config["stages"] = three_stages([256, 1024, 4096], STEPS)
    prepare(typed(config))
    return folder, config


def three_stages(lengths, steps):
    return [
        {
            "name": f"rows of {length}",
            "seq_len": length,
            "tokens": str(length * ROWS * count),
            "batch_tokens": str(length * ROWS),
            "mixture": {"domain": 0.6, "general": 0.4},
            "rope": one,
        }
        for length, count, one in zip(lengths, steps, ROPES, strict=True)
    ]


def job(base, name, kind, ranks, kill=None, **changes):
    folder, config = base
    config = copy.deepcopy(config) | {"run_dir": str(folder / name)} | changes
    config["engine"] |= KINDS[kind] | changes.get("engine", {})
    return {"config": config, "ranks": ranks, "kill": kill}


def carry_out(folder, jobs):
    """How the ranks of each job ended."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    words = [sys.executable, "-m", "tests.helpers.killed_jobs", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=tiny_run.ROOT, env=environment, capture_output=True, text=True, timeout=560, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def chain(base, name, rng):
    """Jobs that are killed in each stage and at each edge, under alternating engines, and one that ends the run."""
    kinds = rng.sample(list(KINDS), 2)
    inside = [rng.randrange(first, first + count) for first, count in zip(FIRST_STEPS, STEPS, strict=True)]
    edges = [
        {"step": FIRST_STEPS[1], "moment": "entered"},
        {"step": FIRST_STEPS[2] - 1, "moment": rng.choice(["weights", "recorded"])},
    ]
    kills = [{"step": step, "moment": rng.choice(["batches", "backward", "weights", "recorded"])} for step in inside]
    kills[rng.randrange(3)] |= {"moment": "time", "seconds": rng.uniform(0, 0.3)}
    kills = [kills[0], edges[0], kills[1], edges[1], kills[2]]
    alone, jobs, ranks = rng.sample(range(5), 2), [], 0
    for number, kill in enumerate(kills):
        ranks = rng.choice([count for count in ((2, 3) if number in alone else (1, 2, 3)) if count != ranks])
        kill["rank"] = rng.randrange(ranks) if number in alone else None
        jobs.append(job(base, name, kinds[number % 2], ranks, kill))
    jobs.append(job(base, name, kinds[1], ranks % 3 + 1))
    for one in jobs:
        print(one["config"]["engine"]["name"], one["ranks"], one["kill"])
    return jobs


def records(run_dir):
    """What the ranks recorded, in no order of steps."""
    return [json.loads(line) for path in sorted(run_dir.glob("samples-*.jsonl")) for line in path.open()]


def as_trained(run_dir):
    """For each step, the samples of its last making with the checksums of their rows."""
    found = records(run_dir)
    last = {}
    for record in found:
        last[record["step"]] = max(last.get(record["step"], 0), record["job"])
    made = {step: {} for step in sorted(last)}
    for record in found:
        if record["job"] == last[record["step"]]:
            made[record["step"]] |= dict(zip(record["ids"], record["checksums"], strict=True))
    return made


def losses(run_dir):
    """(step, loss) of every making of every step."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [(one["step"], one["loss"]) for one in map(json.loads, lines) if one["kind"] == "step"]


def typed(config):
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), config))


def fresh_ropes(config, stages, into):
    """The RoPE of a fresh load of the base model with the config.json of each stage."""
    folder, found = config["model"]["path"], []
    for index, one in enumerate(stage_ropes(read_model_config(folder), typed(config | {"stages": stages}).stages)):
        copied = shutil.copytree(folder, into / f"stage-{index}")
        if one is not None:
            write_export_config(copied, "fp32", one.config_changes)
        found.append(rope(load_model(ModelConfig(path=str(copied)))))
    return found


def test_a_run_of_three_lengths_that_is_killed_in_and_between_stages_is_the_run_that_nobody_killed(base, tmp_path):
    folder, config = base
    print(f"seed {SEED}")
    jobs = [job(base, "whole", "fsdp", 1), *chain(base, "killed", random.Random(SEED))]
    outcomes = carry_out(folder, jobs)
    for one, ended in zip(jobs, outcomes, strict=True):
        if one["kill"] is None:
            assert set(ended) == {"done"}, ended
        elif one["kill"]["moment"] != "time":  # a fast machine may be done by then
            assert "killed" in ended, (one["kill"], ended)

    whole = as_trained(folder / "whole")
    assert [sorted(ids) for ids in whole.values()] == [list(range(n, n + ROWS)) for n in range(0, 11 * ROWS, ROWS)]
    expected = dict(losses(folder / "whole"))
    assert expected[11] < expected[1] - 0.1
    ropes = fresh_ropes(config, config["stages"], tmp_path)
    assert len({json.dumps(one) for one in ropes}) == 3
    stage_of = [stage for stage, count in enumerate(STEPS) for _ in range(count)]
    for name in ("whole", "killed"):
        assert as_trained(folder / name) == whole
        made = losses(folder / name)
        assert len(made) >= 11
        for step, loss in made:
            assert loss == pytest.approx(expected[step], rel=1e-5), (name, step)
        for record in records(folder / name):
            assert record["rope"] == ropes[stage_of[record["step"] - 1]], (name, record["step"], record["job"])
    lines = (folder / "killed" / "metrics.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["kind"] == "resume" for line in lines) >= 4


def test_frequencies_stay_those_of_a_fresh_load_in_16_bit_engines(base, tmp_path):
    """DeepSpeed turns the buffers of a model into bf16, and those of its RoPE with them."""
    folder, config = base
    stages = three_stages([64, 128, 512], [1, 1, 1])
    changes = {"stages": stages, "checkpoint": {"every_steps": 1}}
    kill = {"step": 3, "moment": "batches", "rank": None}
    jobs = []
    for kind, other in (("zero", "fsdp"), ("fsdp", "zero")):
        bf16 = changes | {"engine": {"precision": "bf16"}}
        jobs += [job(base, f"16 bits {kind}", one, 2, end, **bf16) for one, end in ((kind, kill), (other, None))]
    assert [set(ended) for ended in carry_out(folder, jobs)] == [{"killed"}, {"done"}] * 2
    ropes = fresh_ropes(config, stages, tmp_path)
    for kind in KINDS:
        found = records(folder / f"16 bits {kind}")
        assert {one["step"] for one in found} == {1, 2, 3}
        for record in found:
            assert record["rope"] == ropes[record["step"] - 1], (kind, record["step"], record["job"])
