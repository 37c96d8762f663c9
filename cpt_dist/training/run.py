"""The state of a run: what the loop, the callbacks and the checkpoints share.

Everything that can be derived from the position in the sample order is derived: stage, step and learning rate follow
from `position`. It owns no loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from cpt_dist.checkpoint.saver import Saver
from cpt_dist.checkpoint.store import CheckpointStore
from cpt_dist.cluster.health import Straggler
from cpt_dist.cluster.heartbeat import Activity
from cpt_dist.config import RESET, CptConfig, StageConfig
from cpt_dist.data.batch import Batch
from cpt_dist.data.batches import build_batch
from cpt_dist.data.loader import StepLoader
from cpt_dist.data.long_documents import joined_shares
from cpt_dist.data.masking import TakenDown
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.plans import make_plan
from cpt_dist.data.prefetch import Prefetcher
from cpt_dist.data.shards import Source
from cpt_dist.data.targets import epoch_targets
from cpt_dist.engine.base import Engine
from cpt_dist.engine.distributed import World
from cpt_dist.errors import UserError
from cpt_dist.model.folder import read_model_config
from cpt_dist.model.rope import StageRope, stage_ropes
from cpt_dist.model.rope_switch import rope_of, set_rope
from cpt_dist.run_directory import RunDirectory
from cpt_dist.schedules import run_learning_rate
from cpt_dist.training.distillation import Distillation
from cpt_dist.training.guards import Guards
from cpt_dist.training.own_time import OwnTime


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, the same on every rank."""

    step: int
    """Steps done since the start of the run, this one included."""
    stage: str
    learning_rate: float
    grad_norm: float
    """Global L2 norm before clipping."""
    nll_by_source: list[float]
    """Sum of nll in nats, per source."""
    target_tokens_by_source: list[int]
    input_tokens_by_source: list[int]
    samples_by_source: list[int]
    skipped_pieces_by_source: list[int]
    """Pieces of documents that were taken down, in this step's rows."""
    skipped_tokens_by_source: list[int]
    joined_tokens_by_source: list[int]
    """Input tokens in documents shorter than the stage's rows."""
    seconds: float
    data_wait_seconds: float
    """Time that this rank waited for batches; the longest of all ranks."""
    straggler: Straggler | None
    """The slowest rank; None for a single one."""
    stop_reason: str | None
    """Why the job stops after this step, one of `cluster.stop.REASONS`, if some rank was asked to."""
    skipped: str = ""
    """Why the step changed no weight; empty where it did."""
    save_failed: bool = False
    """Some rank knows that the checkpoint written in the background has failed."""
    record_failed: bool = False
    """Rank 0 could not write to metrics.jsonl."""
    distilled_tokens: int = 0
    """Tokens that were distilled from a teacher."""
    sum_of_kl: float = 0.0
    """KL(teacher ‖ model) of them together, in nats."""

    @property
    def stop_requested(self) -> bool:
        """Some rank was asked to stop."""
        return self.stop_reason is not None

    @property
    def loss(self) -> float:
        """Mean nll of a target token, in nats."""
        return sum(self.nll_by_source) / max(1, self.target_tokens)

    @property
    def distillation_kl(self) -> float | None:
        """Mean KL(teacher ‖ model) of a distilled token, in nats; None where none was distilled."""
        return self.sum_of_kl / self.distilled_tokens if self.distilled_tokens else None

    @property
    def target_tokens(self) -> int:
        """Tokens that were predicted."""
        return sum(self.target_tokens_by_source)

    @property
    def input_tokens(self) -> int:
        """Tokens that went through the model."""
        return sum(self.input_tokens_by_source)


@dataclass(frozen=True)
class StepBatches:
    """One rank's part of an optimizer step."""

    micro_batches: list[Batch]
    num_target_tokens: int
    """Of all ranks together."""
    wait_seconds: float
    """Time that this rank waited for the micro-batches."""
    skipped: bool = False
    """The ledger skips the step: nothing is read."""
    num_distilled_tokens: int = 0
    """Of all ranks together."""


@dataclass
class Totals:
    """Counters since the start of the run; part of a checkpoint."""

    input_tokens_by_source: list[int]
    samples_by_source: list[int]
    """Rows in the batches of all ranks; `accounting.py` compares them with the order's counts."""
    skipped_pieces_by_source: list[int]
    """Pieces left out of those rows because their documents were taken down."""
    skipped_tokens_by_source: list[int]
    target_tokens_by_source: list[int] | None = None
    """None after a checkpoint of a version that didn't count them."""
    joined_tokens_by_source: list[int] | None = None
    """Input tokens in documents shorter than their stage's rows; None as above."""
    target_tokens: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0
    """Steps that changed no weight; what they read isn't counted above."""

    @classmethod
    def zero(cls, num_sources: int) -> Totals:
        """The counters at the start of a run."""
        return cls(*([0] * num_sources for _ in range(6)))  # type: ignore[arg-type]

    def add(self, result: StepResult) -> None:
        """Count a step."""
        if result.skipped:
            self.skipped_steps += 1
            self.seconds += result.seconds
            return
        for name in [name for name in vars(self) if name.endswith("_by_source")]:
            if getattr(self, name) is None:
                continue
            pairs = zip(getattr(self, name), getattr(result, name), strict=True)
            setattr(self, name, [total + new for total, new in pairs])
        self.target_tokens += result.target_tokens
        self.seconds += result.seconds

    @property
    def input_tokens(self) -> int:
        """Tokens that went through the model."""
        return sum(self.input_tokens_by_source)


@dataclass
class Run:
    """One job working on one run."""

    config: CptConfig
    world: World
    directory: RunDirectory
    sources: list[Source]
    order: SampleOrder
    engine: Engine
    store: CheckpointStore
    saver: Saver
    guards: Guards
    totals: Totals
    given: CptConfig = field(default_factory=CptConfig)
    """The configuration as it was given; `config` has the stages as they are trained."""
    parent: dict[str, Any] | None = None
    """The run and checkpoint that this run was forked from."""
    base_rope: dict[str, Any] = field(default_factory=dict)
    """RoPE of the base model, as `rope_of` gives it."""
    position: int = 0
    """Samples done: the n of the next sample."""
    origin: int = 0
    """Where the run directory began: behind 0 where it was forked, or begun at a later stage."""
    callbacks: list[Any] = field(default_factory=list)
    rewind_to: int | None = None
    """Step of the checkpoint to go back to once the callbacks have seen the step in progress."""
    stop_reason: str | None = None
    """What this rank was asked to stop for, if it was; the ranks agree on it at the end of a step."""
    refusal: str | None = None
    """Why the run must not go on, once its present step is saved; the same on every rank."""
    stopped_for: str | None = None
    """What the ranks agreed to stop for, if they did."""
    bits_per_byte: tuple[int, dict[str, float]] = (-1, {})
    """Step of the newest evaluation inside the job, and what it found for each source."""
    activity: Activity = field(default_factory=Activity)
    """What this rank does now, for heartbeats and the straggler report."""
    nodes: list[str] = field(default_factory=list)
    """Name of each rank's node."""
    longest_save_seconds: float = 0.0
    """Of this job's checkpoints."""
    last_record: dict[str, Any] = field(default_factory=dict)
    """The newest line of metrics.jsonl of kind step (rank 0)."""
    last_evaluation: dict[str, Any] = field(default_factory=dict)
    """The newest line of kind evaluation of this job (rank 0)."""

    material: dict[Any, Any] = field(default_factory=dict)
    """What evaluations of this job have read from files, by what it is; see `gate_measurements.py`."""
    edges: Any = None
    """The `StageEdges` of the job."""
    distillation: Distillation | None = None
    """What is distilled from the engine's teacher, if it has one."""
    teacher: dict[str, str] | None = None
    """Path and fingerprint of the teacher."""

    def __post_init__(self) -> None:
        self.own_time = OwnTime(self.config.health.probe_every_steps, self.world.device)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return sum(
            min(max(self.position - start, 0), stage.num_samples) // stage.batch_samples
            for start, stage in zip(self.order.stage_starts, self.order.stages, strict=False)
        )

    @property
    def num_steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.num_steps for stage in self.order.stages)

    @property
    def end(self) -> int:
        """Where this job ends: after the last sample of all stages, or of `stop_after_stage`."""
        names = [stage.name for stage in self.config.stages]
        last = self.config.stop_after_stage
        if last not in names:  # none was asked for, or a fork has taken it out of the plan
            return self.order.num_samples
        return int(self.order.stage_starts[names.index(last) + 1])

    @property
    def finished(self) -> bool:
        """Whether every sample of every stage that this job has to do is done."""
        return self.position >= self.end

    def enter_stage(self, index: int) -> None:
        """Give the engine what stage `index` trains with; to be called again after going back."""
        self.engine.context.enter(self.config, index)
        self.enter_rope(index)
        stage = self.config.stages[index]
        if stage.optimizer == RESET and self.position == self.order.stage_starts[index] and self.engine.updates.spans:
            self.engine.reset_optimizer()
        self.engine.set_trainable(stage.trainable)

    def enter_rope(self, index: int) -> None:
        """Give the model the RoPE of stage `index`."""
        rope = self.stage_ropes[index]
        set_rope(self.engine.model, self.base_rope if rope is None else rope.config_changes)

    def changed_rope(self) -> dict[str, Any]:
        """The RoPE that the model has now, as `rope_of` gives it; empty where it is the base model's."""
        rope = rope_of(self.engine.model)
        return {} if rope == self.base_rope else rope

    def remaining_stages(self) -> Iterator[tuple[int, StageConfig]]:
        """Index and configuration of the stages that this job has to do yet, the one in progress first."""
        while not self.finished:
            index = self.order.stage_of(self.position)  # going back may lead into an earlier one
            yield index, self.config.stages[index]

    def steps_of(self, index: int) -> Iterator[StepBatches]:
        """What this rank has to do in each step, from the present position to the end of stage `index`.

        Raises UserError on every rank where one of them can't read its data.
        """
        while self.order.stage_starts[index] <= self.position < self.order.stage_starts[index + 1]:
            if self.position in self.order.skipped:
                yield StepBatches([], 1, 0.0, skipped=True)
            else:
                yield from self._steps_until_change(index)

    def _steps_until_change(self, index: int) -> Iterator[StepBatches]:
        """The steps of `steps_of` up to one that the ledger skips, or where an entry made meanwhile begins to act."""
        order = self.order
        if self.config.data.num_workers:
            self.saver.wait()  # the loader forks, and a thread that holds a lock would not be there to let it go
        context = self.engine.context.now
        loader = StepLoader(
            order,
            self.sources,
            stage=index,
            rank=context.data_rank,
            world_size=context.data_size,
            micro_batch=self.config.engine.micro_batch,
            num_workers=self.config.data.num_workers,
            first_sample=self.position,
            pin_memory=self.world.device.type == "cuda",
            positions=self.config.stages[index].positions,
        )
        ahead = self.config.data.prefetch_shards if self.world.local_rank == 0 else 0
        with Prefetcher(order, self.sources, ahead) as prefetcher:
            yield from self._shared_steps(order, loader, prefetcher)

    def _shared_steps(self, order: SampleOrder, loader: StepLoader, prefetcher: Prefetcher) -> Iterator[StepBatches]:
        batches = iter(loader)
        waited, expected = 0.0, self.position
        for _ in range(len(loader)):
            if self.position != expected or self.position in self.order.skipped:
                return
            expected += order.stages[order.stage_of(self.position)].batch_samples
            new_entries = self.order.ledger[len(order.ledger) :]
            if new_entries and self.position >= new_entries[0].n_start:
                return
            prefetcher.move_to(self.position)
            self.activity.enter("data", self.step + 1)
            error, micro_batches = None, []
            try:
                micro_batches = next(batches)
            except UserError as raised:
                error = raised
            counted = micro_batches if self.engine.context.now.counts else []
            targets = sum(batch.num_target_tokens for batch in counted)
            distilled = sum(self.distillation.count(batch) for batch in counted) if self.distillation else 0
            self.activity.enter("meeting")
            totals = self.world.sum(torch.tensor([targets, int(error is not None), distilled]))
            if totals[1]:
                raise error or UserError("another rank can't read its data; its own message says why")
            wait = loader.wait_seconds - waited
            yield StepBatches(micro_batches, max(1, int(totals[0])), wait, num_distilled_tokens=int(totals[2]))
            waited = loader.wait_seconds

    @cached_property
    def stage_ropes(self) -> list[StageRope | None]:
        """The RoPE of each stage; None: the base model's."""
        return stage_ropes(read_model_config(self.config.model.path), self.config.stages)

    @cached_property
    def epoch_targets(self) -> list[int]:
        """Tokens of each source that one reading of all its rows predicts."""
        return [epoch_targets(source) for source in self.sources]

    @cached_property
    def joined_shares(self) -> dict[int, dict[str, float]]:
        """seq_len of a stage -> source -> share of its tokens in documents that are shorter than that."""
        return joined_shares(self.order, self.sources)

    @cached_property
    def learning_rate(self) -> Callable[[int, float], float]:
        """The learning rate of a stage (by its index) at a progress within it."""
        return run_learning_rate(self.config)

    def progress(self, index: int, position: int | None = None) -> float:
        """Share of stage `index` that is done at `position` (default: the present one)."""
        position = self.position if position is None else position
        return (position - self.order.stage_starts[index]) / self.order.stages[index].num_samples

    def probe_ids(self) -> torch.Tensor:
        """int64 [tokens]: the beginning of the run's first row, a real text that is the same on every rank.

        Without what has been taken down by now; of a later row where that leaves less than two tokens.
        """
        stage = self.order.stages[0]
        plans = [make_plan(source, stage.seq_len, stage.packing) for source in self.sources]
        taken = TakenDown(self.order.take_downs)
        for n in range(stage.num_samples):
            sample = self.order.samples(n, 1)
            row = build_batch(self.sources, plans, sample.source, sample.row, sample.source * 0 + self.position, taken)
            if not row.is_filler and row.num_tokens >= 2:
                return row.input_ids[: self.config.checkpoint.probe_tokens]
        raise UserError("data.take_down: every document of the run's first stage was taken down; nothing is left")

    def each(self, hook: str, *arguments: Any) -> None:
        """Call `hook` of every callback, in their order."""
        for callback in self.callbacks:
            getattr(callback, hook)(self, *arguments)

    def sums_by_source(self, values: torch.Tensor, source_ids: torch.Tensor) -> torch.Tensor:
        """fp64 [sources]: the sum of `values` [tokens] for each source."""
        sums = torch.zeros(len(self.sources), dtype=torch.float64, device=values.device)
        return sums.index_add_(0, source_ids.to(values.device), values.double())
