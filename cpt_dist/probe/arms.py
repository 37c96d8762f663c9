"""One arm of a probe: a model is scored, fine-tuned with each seed by the project's own programs, and scored again.

Examples are prepared as pairs of prompt and completion, so only completions are predicted; training, consolidation and
scoring are those of launch/. A seed's result is one file, written whole; one that is there is not made again, unless
it is of another spec or model, which is refused. Nothing is compared here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from cpt_dist.config import BEST_FIT, CheckpointConfig, CptConfig, DataConfig, SourceConfig, StageConfig
from cpt_dist.data.shards import tokenizer_fingerprint
from cpt_dist.errors import UserError
from cpt_dist.files import atomic_write, fingerprint, write_json
from cpt_dist.fork_config import ForkConfig
from cpt_dist.model.folder import check_model_folder, model_fingerprint
from cpt_dist.model.stage_lengths import length_problems
from cpt_dist.probe.spec import ProbeTask, refuse_other_spec
from cpt_dist.probe_config import ProbeConfig
from cpt_dist.replay_config import ReplayConfig
from cpt_dist.run_directory import RunDirectory
from cpt_dist.schedule_config import ScheduleConfig
from cpt_dist.suites_config import SuitesConfig
from cpt_dist.validation import validate

FORMAT = "cpt_dist.probe_arm/1"
BASE, ADAPTED, CONTROL = "base", "adapted", "control"
BEFORE = "before"
SOURCE = "probe"
TRAIN = Path(__file__).resolve().parents[2] / "launch" / "train.py"


@dataclass(frozen=True)
class Arm:
    """A model that is fine-tuned, or the folder of an earlier probe's arm, whose results are taken."""

    name: str
    folder: str
    results: Path
    """Folder of its result files."""
    made_before: bool
    model: str
    """Fingerprint of the model's files."""


@dataclass(frozen=True)
class Scores:
    """What one model scored on the gold set, and how it was trained (null before fine-tuning)."""

    keys: list[str]
    values: np.ndarray
    """Score of each item, [items]."""
    chance: float
    answer_bits: float | None
    """Mean bits per byte of the right answers; None for generated ones."""
    training: dict[str, Any] | None


@dataclass(frozen=True)
class ArmScores:
    """All results of an arm."""

    arm: Arm
    before: Scores
    seeds: dict[int, Scores]

    def values(self) -> np.ndarray:
        """Scores [seeds, items]."""
        return np.stack([scores.values for scores in self.seeds.values()])


def arms_of(config: CptConfig) -> list[Arm]:
    """base, adapted and, where there is one, the control arm. Raises UserError for folders that are neither a model nor
    an arm's results."""
    folders = {BASE: config.evaluate.base, ADAPTED: config.evaluate.adapted}
    if config.verdict.control is not None:
        folders[CONTROL] = config.verdict.control
    found, problems = [], []
    for name, folder in folders.items():
        earlier = sorted(Path(folder).glob("seed-*.json"))
        try:
            if earlier:
                found.append(Arm(name, folder, Path(folder), True, _read(earlier[0])["model"]))
            else:
                check_model_folder(folder)
                results = Path(config.probe.out) / "arms" / name
                found.append(Arm(name, folder, results, False, model_fingerprint(folder)))
        except UserError as error:
            problems += [one.replace("model.path", name, 1) for one in error.problems]
    if problems:
        raise UserError(problems)
    return found


def made(arm: Arm, task: ProbeTask, config: CptConfig, report: Callable[[str], None]) -> ArmScores:
    """The arm's results; those that are missing are made.

    Raises UserError for results of another spec, by field, or of another model, and for an earlier probe's arm that
    lacks a seed.
    """
    names = {BEFORE: BEFORE} | {str(seed): f"seed-{seed}" for seed in config.probe.seeds}
    found = {key: _known(arm, task, arm.results / f"{name}.json") for key, name in names.items()}
    missing = [names[key] for key, scores in found.items() if scores is None]
    if missing and arm.made_before:
        raise UserError(f"{arm.name}: '{arm.results}' has no {missing[0]}.json; give the model's folder instead")
    for key, scores in found.items():
        if scores is None:
            arm.results.mkdir(parents=True, exist_ok=True)
            begin = time.perf_counter()
            fresh = _score(arm.folder, task, config) if key == BEFORE else _tuned(arm, int(key), task, config)
            write_json(arm.results / f"{names[key]}.json", _record(arm, task, key, fresh))
            _clear(arm.results / names[key], config.probe.keep_models)
            found[key] = fresh
            seconds = time.perf_counter() - begin
            report(f"{arm.name}, {_said(key)}: {task.suite.metric} {fresh.values.mean():.4f} ({seconds:.0f} s)")
        else:
            report(f"{arm.name}, {_said(key)}: {task.suite.metric} {scores.values.mean():.4f} (was there)")
    whole = {key: scores for key, scores in found.items() if scores is not None}
    return ArmScores(arm, whole[BEFORE], {seed: whole[str(seed)] for seed in config.probe.seeds})


def _said(key: str) -> str:
    return "before fine-tuning" if key == BEFORE else f"seed {key}"


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{path}' is no JSON ({error}); remove it") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"'{path}' is no result of an arm of a probe ({FORMAT}); remove it")
    return record


def _known(arm: Arm, task: ProbeTask, path: Path) -> Scores | None:
    if not path.is_file():
        return None
    record = _read(path)
    fix = "compare results of one spec only" if arm.made_before else "give another out=FOLDER, or remove its folder"
    refuse_other_spec(task, record["spec"], f"{arm.name}: '{path}'", fix)
    if record["model"] != arm.model:
        raise UserError(f"{arm.name}: '{path}' is the result of another model than '{arm.folder}'; {fix}")
    return Scores(
        record["keys"], np.array(record["values"]), record["chance"], record["answer_bits"], record["training"]
    )


def _record(arm: Arm, task: ProbeTask, key: str, scores: Scores) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "spec": task.spec,
        "model": arm.model,
        "folder": arm.folder,
        "seed": None if key == BEFORE else int(key),
        **asdict(scores),
        "values": scores.values.tolist(),
    }


def _score(folder: str, task: ProbeTask, config: CptConfig, training: dict[str, Any] | None = None) -> Scores:
    """What the model in `folder` says to the gold set; its answers end where training ended completions."""
    from cpt_dist.evaluation.suites.run import Questions, ask, load_text_model
    from cpt_dist.evaluation.suites.tasks import load_tasks

    model = load_text_model(config, folder)
    if config.data.separator is not None:
        model.end_id = model.tokenizer.convert_tokens_to_ids(config.data.separator)
    found = ask(Questions([task.suite], {}, []), load_tasks([task.suite], []), model, config).suites[task.suite.name]
    bits = None if found.answer_bits is None else float(found.answer_bits.mean())
    return Scores(found.keys, found.values, float(found.chance.mean()), bits, training)


def _tuned(arm: Arm, seed: int, task: ProbeTask, config: CptConfig) -> Scores:
    from cpt_dist.checkpoint.consolidate import consolidate_run
    from cpt_dist.data.prepare import prepare
    from cpt_dist.training.preflight import check_files
    from cpt_dist.training.trainer import train

    work = arm.results / f"seed-{seed}"
    tuning = tuning_config(arm, seed, task, config, work)
    validate(tuning, [length_problems])
    work.mkdir(parents=True, exist_ok=True)
    write_examples(Path(tuning.data.sources[SOURCE].raw[0]), task)
    begin = time.perf_counter()
    with open(work / "log.txt", "a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        prepare(tuning)
        if config.probe.processes > 1:
            _train_together(tuning, config.probe.processes, log)
        else:
            check_files(tuning)
            train(tuning)
        consolidate_run(tuning)
    training = _training_facts(tuning) | {"seconds": time.perf_counter() - begin}
    return _score(tuning.consolidate.out, task, config, training)


def _clear(work: Path, keep_model: bool) -> None:
    """Remove what making a result has left; the model may stay."""
    shutil.rmtree(work / "run" if keep_model else work, ignore_errors=True)


def tuning_config(arm: Arm, seed: int, task: ProbeTask, config: CptConfig, work: Path) -> CptConfig:
    """The configuration of the fine-tuning of `arm` with `seed`, which works in the folder `work`."""
    probe = config.probe
    out = Path(probe.out)
    examples = fingerprint(task.pairs())[:12]
    shards = out / "shards" / f"{examples}-{tokenizer_fingerprint(arm.folder)[:12]}"
    source = SourceConfig(
        raw=[str(out / f"examples-{examples}.jsonl")], prompt_field="prompt", completion_field="completion"
    )
    stage = StageConfig(
        name="sft",
        epochs=probe.epochs,
        seq_len=probe.seq_len,
        batch_tokens=probe.batch_tokens,
        mixture={SOURCE: 1.0},
        packing=BEST_FIT,
    )
    return replace(
        config,
        run_dir=str(work / "run"),
        seed=seed,
        model=replace(config.model, path=arm.folder),
        data=DataConfig(
            sources={SOURCE: source},
            shards=str(shards),
            tokenizer=arm.folder,
            separator=config.data.separator,
            held_out_fraction=0.0,
        ),
        optimizer=replace(config.optimizer, weight_decay=probe.weight_decay),
        schedule=ScheduleConfig("linear", peak_lr=probe.learning_rate, warmup=probe.warmup, min_lr_ratio=0.0),
        stages=[stage],
        alternatives={},
        replay=ReplayConfig(),
        checkpoint=CheckpointConfig(every_steps=0, keep_last=1, asynchronous=False),
        evaluation=replace(config.evaluation, during_training=False, every_steps=0, schedule="steps"),
        consolidate=replace(config.consolidate, step="latest", out=str(work / "model"), dtype="fp32"),
        suites=SuitesConfig(),
        probe=ProbeConfig(),
        stop_after_stage=None,
        start_at_stage=None,
        fork=ForkConfig(),
    )


def write_examples(path: Path, task: ProbeTask) -> None:
    """Write the training examples as JSONL; the name of the file is their content's, so one that is there stays."""
    if not path.is_file():
        with atomic_write(path, "w") as handle:
            handle.writelines(json.dumps(pair, ensure_ascii=False) + "\n" for pair in task.pairs())


def _train_together(tuning: CptConfig, processes: int, log: Any) -> None:
    """launch/train.py under torchrun, on the configuration that is saved in its run directory."""
    run = RunDirectory(tuning.run_dir)
    run.path.mkdir(parents=True, exist_ok=True)
    with atomic_write(run.config, "w") as handle:
        handle.write(OmegaConf.to_yaml(OmegaConf.structured(tuning)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    log.flush()
    done = subprocess.run(
        [*torchrun, str(TRAIN), f"run_dir={tuning.run_dir}"],
        stdout=log,
        stderr=log,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
    )
    if done.returncode:
        raise UserError(
            f"probe: training on {processes} processes ended with exit code {done.returncode}; '{log.name}' says why"
        )


def _training_facts(tuning: CptConfig) -> dict[str, Any]:
    from cpt_dist.evaluation.run_log import RunLog

    log = RunLog.read(RunDirectory(tuning.run_dir).metrics)
    facts = log.facts() if log else {}
    return {name: facts.get(name) for name in ("steps", "tokens", "first_loss", "last_loss")}
