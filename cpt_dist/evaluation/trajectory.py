"""Every checkpoint of a run against its base: what was gained and forgotten on the way, and where it first went wrong.

A checkpoint has regressed where some replay source is shown to be worse than the base by more than the declared margin
(`claims.py`). The first one is found by looking at all, or by bisection, which takes log2 of their number and rests on
one assumption: that a run which has regressed stays so. Weights are read from the checkpoint itself, nothing is
consolidated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cpt_dist.checkpoint.open_store import checkpoint_store
from cpt_dist.checkpoint.store import CheckpointStore
from cpt_dist.config import ALL, CptConfig
from cpt_dist.data.remote import shards_folder
from cpt_dist.errors import UserError
from cpt_dist.evaluation.bits_per_byte import DocumentScores, Score
from cpt_dist.evaluation.claims import REFUTED, RETENTION, Answer, answers
from cpt_dist.evaluation.documents import DocumentEncoder
from cpt_dist.evaluation.evaluate import (
    HeldOutSet,
    Settings,
    check_any_text,
    folder_scorer,
    read_held_out_sets,
    score_sets,
)
from cpt_dist.evaluation.run_log import RunLog
from cpt_dist.evaluation.scorers import packed_scorer
from cpt_dist.evaluation.verdict import Point, claims_of, point
from cpt_dist.model.folder import model_fingerprint
from cpt_dist.run_directory import RunDirectory


@dataclass(frozen=True)
class Visit:
    """One checkpoint, measured."""

    step: int
    point: Point
    answers: list[Answer]
    """To the claims about every source, of this checkpoint against the base."""

    @property
    def regressed(self) -> list[str]:
        """Replay sources that are shown to have lost more than their margin."""
        return [a.claim.name for a in self.answers if a.claim.kind == RETENTION and a.status == REFUTED]


@dataclass(frozen=True)
class Trajectory:
    """The checkpoints that were measured, in the order of their steps."""

    how: str
    run_dir: str
    base_files: str
    """Fingerprint of the base model's files."""
    settings: Settings
    steps: list[int]
    """Of all whole checkpoints."""
    visits: list[Visit]
    first_regressed: int | None
    """Step of the first checkpoint that has regressed, among those known to have or not to have."""
    run_began: float | None = None
    """`RunLog.began` of the run, which tells it from others; None where its metrics are gone."""


def follow(config: CptConfig, report: Callable[[str], None] = lambda line: None) -> Trajectory:
    """Measure the checkpoints of `config.run_dir` that `config.evaluate.checkpoints` names (by default all).

    Raises UserError where there is no checkpoint or a damaged one, or no held-out text.
    """
    how = config.evaluate.checkpoints or ALL
    store = checkpoint_store(config)
    steps = store.steps()
    if not steps:
        raise UserError(f"run_dir: there is no checkpoint in '{store.folder}'; train first, or name another run")
    settings = Settings.of(config)
    encoder = DocumentEncoder(config.model.path, config.data.separator)
    roles = {name: source.role for name, source in config.data.sources.items()}
    sets = read_held_out_sets(shards_folder(config.data), roles, encoder, settings.max_tokens)
    check_any_text(sets)
    base = score_sets("base", encoder, folder_scorer(config, config.model.path), sets, settings, report)

    def visit(step: int) -> Visit:
        load = checkpoint_scorer(config, store, step)
        scores = score_sets(f"step {step}", encoder, load, sets, settings, report)
        return measured(step, sets, base, scores, config, settings)

    visits, first = all_of(steps, visit) if how == ALL else bisected(steps, visit)
    log = RunLog.read(RunDirectory(config.run_dir).metrics)
    base_files = model_fingerprint(config.model.path)
    return Trajectory(how, config.run_dir, base_files, settings, steps, visits, first, log.began if log else None)


def measured(
    step: int,
    sets: list[HeldOutSet],
    base: Mapping[str, DocumentScores],
    scores: Mapping[str, DocumentScores],
    config: CptConfig,
    settings: Settings,
) -> Visit:
    """The visit of a checkpoint with these `scores`."""
    claims = claims_of(sets, {"base": base, "adapted": scores}, config.verdict)
    found = answers(claims, settings.confidence, settings.num_resamples, settings.seed)
    return Visit(step, point(f"step {step}", sets, base, scores, settings), found)


def all_of(steps: list[int], visit: Callable[[int], Visit]) -> tuple[list[Visit], int | None]:
    """Every step visited, and the first that has regressed."""
    visits = [visit(step) for step in steps]
    return visits, next((one.step for one in visits if one.regressed), None)


def bisected(steps: list[int], visit: Callable[[int], Visit]) -> tuple[list[Visit], int | None]:
    """The visits, and the first step that has regressed, of rising `steps` of which all behind that one have as well.

    None where the last one has not regressed, which is looked at first.
    """
    visits = {steps[-1]: visit(steps[-1])}
    if not visits[steps[-1]].regressed:
        return list(visits.values()), None
    good, bad = -1, len(steps) - 1
    while bad - good > 1:
        middle = (good + bad) // 2
        visits[steps[middle]] = visit(steps[middle])
        if visits[steps[middle]].regressed:
            bad = middle
        else:
            good = middle
    return [visits[step] for step in sorted(visits)], steps[bad]


def checkpoint_scorer(config: CptConfig, store: CheckpointStore, step: int) -> Callable[[], Score]:
    """A function that loads the weights of a checkpoint, verified as `checkpoint.verify` says, and gives a scorer."""

    def load() -> Score:
        import torch
        import torch.distributed.checkpoint as dcp

        from cpt_dist.checkpoint.dcp import SafeReader
        from cpt_dist.model.load import load_model
        from cpt_dist.model.rope_switch import set_rope

        problems = store.problems(step, config.checkpoint.verify)
        if problems:
            raise UserError(problems)
        model = load_model(replace(config.model, activation_checkpointing=False))
        weights = {f"model.{model.hf_name(name)}": one.detach() for name, one in model.named_parameters()}
        dcp.load(weights, storage_reader=SafeReader(Path(store.path(step)) / "state"), no_dist=True)
        set_rope(model, store.trainer(step).get("rope") or {})
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return packed_scorer(model.to(device).eval(), device)

    return load
