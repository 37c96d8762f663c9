"""Adaptive replay inside training: evaluation -> decision -> ledger -> sample order, the same on every rank.

What is decided is in `cpt_dist/retention/replay_controller.py`; here it is measured against the start of the run,
decided by rank 0, written to ledger.jsonl before it acts, and handed to the sample order. On a resumed run decisions
that are in the ledger already are not taken again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np

from cpt_dist.data.ledger_entry import LedgerEntry, write_ledger
from cpt_dist.data.run_order import sample_order
from cpt_dist.data.view_names import source_of
from cpt_dist.errors import UserError
from cpt_dist.evaluation import statistics
from cpt_dist.evaluation.bits_per_byte import DocumentScores
from cpt_dist.files import write_json
from cpt_dist.retention.replay_controller import Decision, Rise, decide, raised
from cpt_dist.training.first_rank import on_first
from cpt_dist.training.run import Run

BASELINE = "replay_baseline.json"


class AdaptiveReplay:
    """Called with the scores of every evaluation, in their order, on every rank."""

    def __init__(self, run: Run) -> None:
        self._path = run.directory.path / BASELINE
        self._baseline = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else None
        run.world.barrier()

    def observe(self, run: Run, scores: Mapping[str, DocumentScores], over_budget: str = "") -> LedgerEntry | None:
        """Keep the first scores as the baseline; let later ones change the shares. Returns the decision, if any.

        `over_budget` says which retention budget is exceeded: then the share rises, whatever the rule.
        """
        if self._baseline is None:
            self._baseline = {name: one.nll.tolist() for name, one in scores.items()}
            on_first(run.world, lambda: write_json(self._path, self._baseline))
            return None
        self._check_documents(scores)
        entry: LedgerEntry | None = on_first(run.world, lambda: self._entry(run, scores, over_budget))
        if entry is not None:
            run.order = sample_order(run.config, run.sources, [*run.order.entries, entry])
        return entry

    def _entry(self, run: Run, scores: Mapping[str, DocumentScores], over_budget: str) -> LedgerEntry | None:
        """The decision as an entry that is on disk when this returns; None where nothing changes."""
        replay = run.config.replay
        if (
            run.position == run.origin or run.finished
        ):  # at its start: a run that was killed before its first checkpoint begins again
            return None
        steps = [entry.evidence["step"] for entry in run.order.ledger if "step" in entry.evidence]
        last_step = steps[-1] if steps else None
        if last_step is not None and last_step >= run.step:
            return None
        stage = run.order.stage_of(run.position)
        n_start = run.position + replay.effect_steps * run.order.stages[stage].batch_samples
        if n_start >= run.order.stage_starts[stage + 1]:
            return None
        if run.order.ledger and run.order.ledger[-1].n_start >= n_start:
            return None  # a generation enters there or later, and entries rise
        shares = run.order.source_shares(n_start)
        roles = {source_of(source.name): source.role for source in run.sources}
        replay_sources = [name for name in shares if roles[name] == "replay"]
        if not replay_sources or len(replay_sources) == len(shares):
            return None
        rises = {name: self._rise(run, name, scores[name]) for name in shares if name in scores}
        since = None if last_step is None else run.step - last_step
        if over_budget:
            decision = raised(replay, shares, replay_sources, since, over_budget)
        else:
            decision = decide(replay, shares, replay_sources, rises, since)
        if decision is None:
            return None
        entry = LedgerEntry(n_start, decision.shares, decision.reason, self._evidence(run, decision, rises))
        return entry if self._written(run, entry) else None

    def _check_documents(self, scores: Mapping[str, DocumentScores]) -> None:
        """Raise UserError, on every rank alike, where the baseline is of other documents."""
        baseline = self._baseline or {}
        found = {name: len(baseline.get(name, [])) for name in scores}
        problems = [
            f"'{self._path}': source '{name}' has {found[name]} held-out documents there and {len(one.nll)} now; set "
            "evaluation.max_tokens back, or remove the file to measure from here on"
            for name, one in scores.items()
            if found[name] != len(one.nll)
        ]
        if problems:
            raise UserError(problems)

    def _rise(self, run: Run, name: str, now: DocumentScores) -> Rise:
        """Relative rise of the source's bits per byte, with a paired bootstrap over its documents."""
        assert self._baseline is not None
        base = np.array(self._baseline[name])
        difference, start = now.nll - base, base.sum()
        value = float(difference.sum() / start)
        weights = now.num_bytes.astype(np.float64)
        effective = statistics.effective_documents(weights)
        if effective < statistics.least_documents(run.config.evaluation.confidence):
            return Rise(value, None, None)
        seed = statistics.source_seed(run.config.seed, name)
        replicates = statistics.resampled_ratios(difference[None], base, run.config.evaluation.bootstrap, seed)[0]
        low, high = statistics.percentile_interval(replicates, run.config.evaluation.confidence, effective)
        return Rise(value, low, high) if math.isfinite(low) and math.isfinite(high) else Rise(value, None, None)

    def _evidence(self, run: Run, decision: Decision, rises: Mapping[str, Rise]) -> dict[str, object]:
        return {
            "step": run.step,
            "replay_share": decision.replay_share,
            "relative_rise": {name: [rise.value, rise.low, rise.high] for name, rise in rises.items()},
        }

    def _written(self, run: Run, entry: LedgerEntry) -> bool:
        """Try the entry on the order (a cap may forbid it), then write the ledger and a line of metrics.jsonl."""
        ledger = [*run.order.entries, entry]
        record = {"kind": "ledger", "step": run.step, "n_start": entry.n_start, "weights": entry.weights}
        try:
            order = sample_order(run.config, run.sources, ledger)
        except UserError as error:
            run.directory.append_metrics({**record, "reason": f"refused: {error}", "taken": False})
            return False
        write_ledger(run.directory.ledger, ledger)
        run.directory.keep_order(order.identity)
        run.directory.append_metrics({**record, "reason": entry.reason, "taken": True})
        return True
