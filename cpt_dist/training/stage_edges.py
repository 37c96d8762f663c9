"""What happens where a stage begins and where it ends: optimizer and RoPE, checkpoint, model, gate, lineage.

Everything here can be done twice: a job that was killed at an edge does what is left when it is started again. What a
stage trains with is in `Run.enter_stage`.
"""

from __future__ import annotations

from cpt_dist.checkpoint.stage_model import StageModels
from cpt_dist.cluster.stop import SIGNAL
from cpt_dist.errors import UserError
from cpt_dist.gate_config import FORK, STAGE_START, STOP, may_fork
from cpt_dist.training.first_rank import on_first
from cpt_dist.training.gates import decide_gate, keep_baseline, refusal
from cpt_dist.training.lineage import append_lineage
from cpt_dist.training.run import Run

BEFORE, MODEL = "before-", "model-"
"""Beginnings of names that keep a checkpoint while it is needed: to undo a stage, to make a stage's model."""


class StageEdges:
    """The edges of one run, as one job meets them."""

    def __init__(self, run: Run) -> None:
        self._models = StageModels(run.directory.path)

    def start(self, run: Run) -> bool:
        """Before the first step of a job: finish what the last one left; whether the run goes on with its stages."""
        on_first(run.world, lambda: append_lineage(run, "start", _stage_name(run), parent=run.parent))
        on_first(run.world, lambda: self._consolidate_before(run))
        if run.position == run.origin:
            return True  # the stage before is none of this run's
        ended = [end for end in run.order.stage_starts[1:] if end == run.position]
        return self.leave(run, run.order.stage_starts.index(ended[0]) - 1) if ended else True

    def enter(self, run: Run, index: int) -> None:
        """Before the first step that this job makes in stage `index`."""
        stage, at_start = run.config.stages[index], run.position == run.order.stage_starts[index]
        if at_start and stage.gate is not None:
            begun_here = run.position == run.origin and run.parent is None
            if index and not begun_here:
                run.enter_rope(index - 1)  # the model that there is without the stage, at the lengths it was made for
            if stage.gate.against == STAGE_START:
                keep_baseline(run, STAGE_START, stage)
            if may_fork(stage.gate) and run.position:
                on_first(run.world, lambda: _set_name(run, BEFORE + stage.name))
        run.enter_stage(index)

    def leave(self, run: Run, index: int) -> bool:
        """After the last step of stage `index`, whose checkpoint is being written; whether the run goes on.

        False: the gate has forked the plan. Raises UserError on every rank where the gate stops the run.
        """
        stage = run.config.stages[index]
        run.saver.wait()
        on_first(run.world, lambda: self._checkpoint_names(run, index))
        decision = decide_gate(run, index)
        gate = None if decision is None else {"verdict": decision.verdict, "action": decision.action}
        on_first(run.world, lambda: append_lineage(run, "stage", stage.name, gate=gate))
        if decision is not None and decision.action == STOP:
            raise UserError(refusal(run, decision))
        if decision is not None and decision.action == FORK:
            return False
        on_first(run.world, lambda: _set_name(run, BEFORE + stage.name, remove=True))
        return True

    def _checkpoint_names(self, run: Run, index: int) -> None:
        stage = run.config.stages[index]
        if stage.keep:
            _set_name(run, stage.name)
        if stage.consolidate:
            if not self._models.is_made(stage.name):
                _set_name(run, MODEL + stage.name)
            self._consolidate(run, index)

    def _consolidate_before(self, run: Run) -> None:
        """The models of earlier stages that an earlier job was killed over."""
        for index, stage in enumerate(run.config.stages):
            if stage.consolidate and run.order.stage_starts[index + 1] < run.position:
                self._consolidate(run, index)

    def _consolidate(self, run: Run, index: int) -> None:
        """Begin with the model of a stage whose checkpoint is kept for it."""
        name = run.config.stages[index].name
        step = run.store.names().get(MODEL + name)
        if step is not None and self._models.is_made(name):
            run.store.set_name(MODEL + name, None)
        elif step is not None:
            self._models.begin(name, step)

    def end(self, run: Run) -> None:
        """After the last step of a job."""
        on_first(run.world, lambda: append_lineage(run, "end", _stage_name(run), stopped_for=run.stopped_for))

    def finish(self, run: Run) -> None:
        """Wait for the models of stages and say how the job ended, on rank 0, when no other rank waits for it any more.

        Raises UserError with each model that was not made.
        """
        path, where = run.directory.path, f"{run.step} of {run.num_steps} steps"
        if run.finished:
            print(f"finished: {where}; for the model: python launch/consolidate.py run_dir={path}", flush=True)
        else:
            print(
                f"stopped ({run.stopped_for or SIGNAL}): {where} are in a checkpoint; go on with run_dir={path}",
                flush=True,
            )
        if problems := self._watch(run, wait=True):
            raise UserError(problems)

    def _watch(self, run: Run, wait: bool = False) -> list[str]:
        """Let go of the checkpoints of models that are made; what was not made, a line each."""
        problems = []
        for stage, _, problem in self._models.finished(wait):
            problems += [problem] if problem else []
            if not problem:
                _set_name(run, MODEL + stage, remove=True)
        return problems


def _stage_name(run: Run) -> str | None:
    return None if run.position >= run.order.num_samples else run.config.stages[run.order.stage_of(run.position)].name


def _set_name(run: Run, name: str, remove: bool = False) -> None:
    names = run.store.names()
    if remove:
        if name in names:
            run.store.set_name(name, None)
        return
    if run.step in run.store.steps():
        run.store.set_name(name, run.step)
