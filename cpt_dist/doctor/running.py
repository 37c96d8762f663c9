"""Checks of how a run runs: memory, loader, stragglers, saves, the mixture that was read, jobs that are gone.

Each check is a function of a case; borders are constants here and heuristics unless something else is said.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from statistics import fmean, median
from typing import Any

from cpt_dist.data.remote import is_url
from cpt_dist.doctor.case import Case
from cpt_dist.doctor.findings import (
    FOUND,
    SEVERE,
    WARNING,
    Change,
    Finding,
    healthy,
    not_enough,
)

RECENT_STEPS = 50
LEAST_STEPS = 10
STARVED = 0.1
"""Part of a step that the slowest rank waits for batches."""
LAGGING = 0.1
"""Part of a step that the slowest rank takes longer than the median one."""
STALLED = 0.05
"""Part of the time that saves stop training."""
OFF_PLAN = 0.005
"""Difference of a source's share of tokens from the planned share."""
SILENT_SECONDS = 120.0
"""Age of the newest heartbeat after which nobody is there, at least."""
_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|can't allocate memory|Cannot allocate memory|\bMemoryError\b|oom[-_ ]kill|"
    r"Killed process \d+|signal 9|exitcode\s*:\s*-9|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_SAVE_FAILED = re.compile(
    r"No space left on device|Disk quota exceeded|Read-only file system|checkpoint.*(?:failed|could not be written)",
    re.IGNORECASE,
)


def _said(case: Case, pattern: re.Pattern[str], most: int = 3) -> list[str]:
    """The last lines of each log that match, a few in all."""
    newest: dict[Any, str] = {}
    for path, number, line in case.log_lines():
        if pattern.search(line):
            newest[path] = f"{path}, line {number}: {line.strip()[:240]}"
    return list(newest.values())[:most]


def out_of_memory(case: Case) -> Finding:
    """What the logs of the ranks say of memory."""
    name = "out of memory"
    if not case.logs:
        return not_enough(name, "there are no logs of the ranks in run_dir/logs; give them as doctor.logs=FILES")
    said = _said(case, _OUT_OF_MEMORY)
    peaks = [int(record["memory_bytes"]) for record in case.steps if record.get("memory_bytes")]
    numbers = {"memory_bytes": max(peaks) if peaks else None, "logs": len(case.logs)}
    if not said:
        return healthy(name, f"{len(case.logs)} logs say nothing of it", **numbers)
    config = case.config
    changes = []
    if config.engine.micro_batch > 1:
        half = config.engine.micro_batch // 2
        changes.append(Change("engine.micro_batch", config.engine.micro_batch, half, "half the activations"))
    if not config.model.activation_checkpointing:
        changes.append(Change("model.activation_checkpointing", False, True, "activations are made again"))
    ranks = next((start["world_size"] for start in reversed(case.log.starts) if "world_size" in start), 1)
    if config.engine.name == "zero" and config.engine.zero_stage < 3 and ranks > 1:
        changes.append(Change("engine.zero_stage", config.engine.zero_stage, 3, "parameters are shared among ranks"))
    if config.engine.name == "fsdp" and config.engine.shard_size:
        changes.append(Change("engine.shard_size", config.engine.shard_size, 0, "all ranks share one copy"))
    if not config.engine.offload:
        changes.append(Change("engine.offload", False, True, "optimizer state goes to host memory"))
    if config.model.loss_chunk_tokens > 128:
        half = config.model.loss_chunk_tokens // 2
        changes.append(
            Change("model.loss_chunk_tokens", config.model.loss_chunk_tokens, half, "fewer logits at a time")
        )
    if peaks:
        said.append(f"rank 0 had used {max(peaks) / 1e9:,.2f} GB by step {case.last_step}")
    return Finding(name, FOUND, tuple(said), SEVERE, tuple(changes), numbers=numbers)


def starved_loader(case: Case) -> Finding:
    """How long steps wait for batches."""
    name = "starved loader"
    recent = [r for r in case.steps[-RECENT_STEPS:] if isinstance(r.get("data_wait_share"), (int, float))]
    if len(recent) < LEAST_STEPS:
        return not_enough(name, f"{len(recent)} recorded steps; at least {LEAST_STEPS} are needed")
    share = median(record["data_wait_share"] for record in recent)
    line = f"steps {recent[0]['step']} to {recent[-1]['step']}: the median one waits for {share:.1%} of its time"
    if share <= STARVED:
        return healthy(name, line, data_wait_share=share)
    data = case.config.data
    workers = 2 * data.num_workers if data.num_workers else 2
    changes = [Change("data.num_workers", data.num_workers, workers, "batches are assembled ahead")]
    if is_url(data.shards):
        ahead = max(4, 2 * data.prefetch_shards)
        changes.append(Change("data.prefetch_shards", data.prefetch_shards, ahead, "shards are fetched further ahead"))
        if not data.shuffle_window_shards:
            changes.append(Change("data.shuffle_window_shards", 0, 8, "fewer shards are needed at one time"))
    advice = ("the shards' disk may be slow: python -m cpt_dist.data.verify reads them all",)
    return Finding(name, FOUND, (line,), WARNING, tuple(changes), advice, {"data_wait_share": share})


def straggler(case: Case) -> Finding:
    """Whether one rank holds up the others."""
    name = "straggler"
    worlds = [start.get("world_size") for start in case.log.starts]
    if worlds and worlds[-1] == 1:
        return healthy(name, "there is one rank")
    recent = [r for r in case.steps[-RECENT_STEPS:] if r.get("straggler") and r.get("seconds")]
    if len(recent) < LEAST_STEPS:
        return not_enough(name, f"{len(recent)} recorded steps of several ranks; at least {LEAST_STEPS} are needed")
    (rank, times), *_ = Counter(record["straggler"]["rank"] for record in recent).most_common(1)
    own = [record for record in recent if record["straggler"]["rank"] == rank]
    lag = fmean((r["straggler"]["seconds"] - r["straggler"]["median_seconds"]) / r["seconds"] for r in own)
    phase, _ = Counter(record["straggler"]["phase"] for record in own).most_common(1)[0]
    node = own[-1]["straggler"].get("node")
    where = f"rank {rank} on {node}" if node else f"rank {rank}"
    line = (
        f"{where} was the slowest in {times} of {len(recent)} steps, mostly in '{phase}', by {lag:.1%} of a step "
        "against the median rank"
    )
    numbers = {"rank": rank, "node": node, "phase": phase, "lag": lag, "steps": times}
    if times <= len(recent) / 2 or lag <= LAGGING:
        return healthy(name, line, **numbers)
    changes = []
    if phase == "data":
        workers = case.config.data.num_workers
        changes.append(Change("data.num_workers", workers, max(2, 2 * workers), "it waits for its batches"))
    elif node and len(set(_nodes(case))) > 1:
        options = [*case.config.cluster.sbatch, f"--exclude={node}"]
        changes.append(Change("cluster.sbatch", case.config.cluster.sbatch, options, "start on other nodes"))
    advice = ("look for other jobs, throttling or a bad link on its node",)
    return Finding(name, FOUND, (line,), WARNING, tuple(changes), advice, numbers)


def _nodes(case: Case) -> list[str]:
    return [beat["node"] for beat in case.heartbeats if "node" in beat]


def _due_saves(case: Case) -> list[int]:
    """Steps at which a checkpoint was due and not bound to be still under way."""
    due = []
    skipped = {one.get("step") for one in case.skips}
    for step in range(1, case.last_step + 1):
        config = case.config_of(step) or case.config
        every = config.checkpoint.every_steps
        if every and step % every == 0 and step not in skipped and step + every <= case.last_step:
            due.append(step)
    return due


def failed_saves(case: Case) -> Finding:
    """Checkpoints that were due and never came, and what the logs say of saves."""
    name = "failed saves"
    due = _due_saves(case)
    said = _said(case, _SAVE_FAILED)
    if not due and not said:
        every = case.config.checkpoint.every_steps
        return not_enough(name, f"no checkpoint was due yet (checkpoint.every_steps={every}, step {case.last_step})")
    missing = [step for step in due if step not in case.log.checkpoints]
    evidence = []
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
        evidence.append(f"{len(missing)} of {len(due)} checkpoints never came, those of steps {shown}")
    evidence += said
    numbers = {"due": len(due), "missing": missing}
    if not evidence:
        return healthy(name, f"all {len(due)} that were due are there", **numbers)
    if case.leftovers:
        evidence.append(f"begun and not whole: {', '.join(case.leftovers)}")
    checkpoint = case.config.checkpoint
    changes = []
    if checkpoint.keep_last > 1 or checkpoint.keep_last == 0:
        changes.append(Change("checkpoint.keep_last", checkpoint.keep_last, 1, "fewer checkpoints need less room"))
    if checkpoint.keep_every:
        changes.append(Change("checkpoint.keep_every", checkpoint.keep_every, 0, "those are kept for ever"))
    advice = ("make room, or move run_dir to a larger disk; a checkpoint is 12 bytes a parameter and more",)
    return Finding(name, FOUND, tuple(evidence), SEVERE, tuple(changes), advice, numbers)


def slow_saves(case: Case) -> Finding:
    """How long saves stop training."""
    name = "saves stall training"
    if not case.saves or len(case.steps) < LEAST_STEPS:
        return not_enough(name, f"{len(case.saves)} saves and {len(case.steps)} recorded steps")
    stall = fmean(float(one.get("stall_seconds", 0.0)) for one in case.saves)
    step = median(float(r["seconds"]) for r in case.steps if r.get("seconds"))
    checkpoint = case.config.checkpoint
    between = checkpoint.every_steps or case.last_step
    share = stall / (stall + between * step)
    line = f"a save stops training for {stall:.2f} s, the steps between two take {between * step:,.1f} s: {share:.1%}"
    if share <= STALLED:
        return healthy(name, line, share=share)
    changes = []
    if not checkpoint.asynchronous:
        changes.append(Change("checkpoint.asynchronous", False, True, "write behind training"))
    if checkpoint.every_steps:
        every = math.ceil(round(stall * (1 / STALLED - 1) / step, 6))
        changes.append(Change("checkpoint.every_steps", checkpoint.every_steps, every, f"then it is {STALLED:.0%}"))
    return Finding(name, FOUND, (line,), WARNING, tuple(changes), numbers={"share": share})


def mixture_off_plan(case: Case) -> Finding:
    """Shares of tokens that were read against those that the mixture asks for."""
    name = "mixture off plan"
    if len(case.steps) < LEAST_STEPS:
        return not_enough(name, f"{len(case.steps)} recorded steps; at least {LEAST_STEPS} are needed")
    last = case.steps[-1]
    planned, realised = last.get("planned_tokens") or {}, last.get("realised_tokens") or {}
    if not sum(planned.values()) or not sum(realised.values()):
        return not_enough(name, "the metrics have no planned and realised tokens")
    row = max((place.stage.seq_len for place in case.places), default=0)
    off = {}
    for source in planned:
        wanted = planned[source] / sum(planned.values())
        got = realised.get(source, 0) / sum(realised.values())
        off[source] = (got - wanted, wanted, got)
    worst = max(off, key=lambda one: round(abs(off[one][0]), 9))
    difference, wanted, got = off[worst]
    line = f"'{worst}' at step {last['step']}: {got:.2%} of tokens were read, {wanted:.2%} were planned"
    # Whole rows are read, so a count may be two rows off.
    border = max(OFF_PLAN, 2 * row / sum(realised.values()))
    if abs(difference) <= border:
        return healthy(name, line, difference=difference, border=border)
    evidence = [line]
    changes = []
    taken = last.get("skipped_tokens")
    if taken:
        evidence.append(f"{taken:,} tokens of documents that were taken down were left out")
    elif case.stage and case.stage.stage.packing != "best_fit":
        place = case.stage
        why = "rows that aren't full make a source's share of tokens smaller than its share of rows"
        changes.append(Change(f"{place.key}.packing", place.stage.packing, "best_fit", why))
    advice = (
        "launch/plan.py what=data shows how full each source's rows are; an account in a checkpoint record says which "
        "count differs (docs/ledger.md)",
    )
    numbers = {"difference": difference, "border": border}
    return Finding(name, FOUND, tuple(evidence), WARNING, tuple(changes), advice, numbers)


def lost_job(case: Case) -> Finding:
    """A run that isn't finished and whose ranks are silent, or behind each other."""
    name = "job gone or stuck"
    if case.progress is not None and case.progress >= 1:
        return healthy(name, "the run is finished")
    if not case.heartbeats:
        return not_enough(name, "there are no heartbeats (health.heartbeat_seconds)")
    newest = max(beat["time"] for beat in case.heartbeats)
    start = max(case.heartbeats, key=lambda beat: beat["time"]).get("start")
    beats = [beat for beat in case.heartbeats if beat.get("start") == start]
    age = case.now - newest
    border = max(SILENT_SECONDS, 4 * case.config.health.heartbeat_seconds)
    numbers = {"seconds_since_heartbeat": age, "border": border}
    if all(beat["phase"] == "end" for beat in beats):
        return healthy(name, f"the last job ended in order at step {max(beat['step'] for beat in beats)}", **numbers)
    evidence = []
    # The beat of a rank that is stuck goes on; its phase doesn't.
    warn = case.config.health.warn_after_seconds or case.config.engine.timeout_seconds / 2
    stuck = [beat for beat in beats if beat["seconds"] > warn]
    behind = min(beats, key=lambda beat: (beat["step"], beat["time"]))
    if age > border:
        evidence.append(
            f"the newest heartbeat is {age:,.0f} s old; rank {behind['rank']} on {behind['node']} was in step "
            f"{behind['step']}, {behind['phase']}"
        )
    elif stuck:
        evidence.append(
            f"{len(stuck)} rank(s) are in one phase for over {warn:,.0f} s; furthest behind is rank "
            f"{behind['rank']} on {behind['node']}: step {behind['step']}, {behind['phase']}"
        )
    if not evidence:
        return healthy(name, f"the newest heartbeat is {age:,.0f} s old", **numbers)
    evidence += [
        f"rank {report['rank']} missed rank {lost['rank']} on {lost['node']}: it {lost['why']}"
        for report in case.lost[-3:]
        for lost in report.get("lost", [])
    ]
    advice = (
        f"start it again: launch/train.py run_dir={case.path} goes on from the newest checkpoint "
        f"(step {max(case.log.checkpoints, default=0)})",
    )
    return Finding(name, FOUND, tuple(evidence), SEVERE, advice=advice, numbers=numbers)


CHECKS = (
    out_of_memory,
    starved_loader,
    straggler,
    mixture_off_plan,
    failed_saves,
    slow_saves,
    lost_job,
)
