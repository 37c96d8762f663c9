"""Ask both models everything that `suites` names, one model in memory at a time, and compare.

Files are read before a model is loaded, so a mistake in them costs no time. What can't be had here (a task's data, a
source's shards) is not run and says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from cpt_dist.config import CptConfig, parse_quantity
from cpt_dist.corpus.ngrams import NgramIndex
from cpt_dist.data.remote import as_folder, shards_folder
from cpt_dist.data.shards import Source, is_complete, tokenizer_fingerprint
from cpt_dist.evaluation.scorers import packed_decode, packed_logits
from cpt_dist.evaluation.suites.answers import Answerer
from cpt_dist.evaluation.suites.compare import Judge, SuiteResult, compare_items, compare_scores, with_outcomes
from cpt_dist.evaluation.suites.contamination import Evidence, search
from cpt_dist.evaluation.suites.generations import Continuations, continue_prompts, read_prompts
from cpt_dist.evaluation.suites.probes import Fact, ProbeResult, compare_facts, read_facts, score_facts
from cpt_dist.evaluation.suites.suite_file import Suite, read_suites
from cpt_dist.evaluation.suites.tasks import SuiteScores, Tasks, load_tasks, run_suite
from cpt_dist.evaluation.suites.text_model import TextModel
from cpt_dist.model.folder import max_positions, read_model_config

UNLIMITED_POSITIONS = 1 << 20
MODELS = ("base", "adapted")


@dataclass(frozen=True)
class Questions:
    """What both models are asked, read from files."""

    suites: list[Suite]
    facts: dict[str, list[Fact]]
    """Probe file -> its facts."""
    prompts: list[str]


@dataclass
class Answers:
    """What one model said."""

    suites: dict[str, SuiteScores] = field(default_factory=dict)
    facts: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    continuations: list[Continuations] = field(default_factory=list)


@dataclass(frozen=True)
class Searched:
    """What was searched for contamination."""

    sources: list[str]
    missing: list[str]
    """Sources without complete shards here."""
    documents: int
    tokens: int
    evidence: list[tuple[str, str, Evidence]] = field(default_factory=list)
    """(suite, item, where it was first found)."""
    leaked: dict[str, list[int]] = field(default_factory=dict)
    """Suite -> places of its items that were found; empty where nothing was searched."""
    unchecked: dict[str, int] = field(default_factory=dict)
    """Suite -> its items too short to be searched for."""


@dataclass(frozen=True)
class SuitesEvaluation:
    """The comparison of two models on suites, facts and prompts."""

    base_model: str
    adapted_model: str
    judge: Judge
    settings: dict[str, Any]
    suites: list[SuiteResult]
    probes: list[ProbeResult]
    continuations: list[tuple[str, Continuations, Continuations]]
    """(prompt, base, adapted)."""
    searched: Searched | None


def read_questions(config: CptConfig) -> Questions:
    """All files that `suites` names. Raises UserError with the mistakes in them."""
    suites = [
        replace(suite, fewshot=config.suites.num_fewshot)
        if suite.task is not None and suite.fewshot is None and config.suites.num_fewshot is not None
        else suite
        for suite in read_suites(config.suites.run)
    ]
    facts = {path: read_facts(Path(path)) for path in config.suites.probes}
    prompts = read_prompts(Path(config.suites.prompts)) if config.suites.prompts else []
    return Questions(suites, facts, prompts)


def ask(
    questions: Questions,
    tasks: Tasks,
    model: TextModel,
    config: CptConfig,
    report: Callable[[str], None] = lambda line: None,
) -> Answers:
    """What `model` says to everything. Under several ranks every rank calls it, and all get the same."""
    answers = Answers()
    if questions.suites:
        from cpt_dist.evaluation.suites.adapter import PackedLM

        lm = PackedLM(model, config.seed)
        for suite in questions.suites:
            report(f"suite {suite.name}")
            answers.suites[suite.name] = run_suite(suite, tasks[suite.name], lm, config.suites.limit)
    for path, facts in questions.facts.items():
        report(f"probes {path}")
        answers.facts[path] = score_facts(facts, model)
    if questions.prompts:
        report(f"{len(questions.prompts)} prompts")
        answers.continuations = continue_prompts(questions.prompts, model, config.suites, config.seed)
    return answers


def load_text_model(config: CptConfig, folder: str) -> TextModel:
    """The model in `folder`, on the GPU where there is one."""
    from cpt_dist.model.load import load_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(replace(config.model, path=folder)).to(device).eval()
    positions = max_positions(read_model_config(folder)) or UNLIMITED_POSITIONS
    batch_tokens = parse_quantity(config.evaluate.batch_tokens, "evaluate.batch_tokens")
    decode = packed_decode(model, device)
    return TextModel(folder, Answerer(packed_logits(model, device), positions, batch_tokens, decode=decode))


def evaluate_suites(config: CptConfig, report: Callable[[str], None] = lambda line: None) -> SuitesEvaluation:
    """Ask `config.evaluate.base` and `.adapted`, and compare. Raises UserError for mistakes in files and folders."""
    questions = read_questions(config)
    tasks = load_tasks(questions.suites, config.suites.task_folders) if questions.suites else {}
    answers = {}
    for name, folder in zip(MODELS, (config.evaluate.base, config.evaluate.adapted), strict=True):
        report(f"loading the {name} model")
        model = load_text_model(config, folder)
        answers[name] = ask(questions, tasks, model, config, lambda line, name=name: report(f"{name} model: {line}"))  # type: ignore[misc]
        del model
    return compare_answers(config, questions, answers["base"], answers["adapted"], report)


def compare_answers(
    config: CptConfig,
    questions: Questions,
    base: Answers,
    adapted: Answers,
    report: Callable[[str], None] = lambda line: None,
) -> SuitesEvaluation:
    """The comparison of what both models said."""
    judge = Judge(config.evaluation.confidence, config.evaluation.bootstrap, config.seed, config.suites.margin)
    results = [
        compare_scores(suite, base.suites[suite.name], adapted.suites[suite.name], judge) for suite in questions.suites
    ]
    searched = None
    if config.suites.contamination and questions.suites:
        searched, results = _without_contaminated(config, questions.suites, base, adapted, judge, results, report)
    probes = [
        compare_facts(path, facts, base.facts[path], adapted.facts[path], judge)
        for path, facts in questions.facts.items()
    ]
    return SuitesEvaluation(
        config.evaluate.base,
        config.evaluate.adapted,
        judge,
        {
            "limit": config.suites.limit,
            "num_fewshot": config.suites.num_fewshot,
            "ngram": config.suites.ngram,
            "max_new_tokens": config.suites.max_new_tokens,
            "temperature": config.suites.temperature,
            "top_p": config.suites.top_p,
        },
        with_outcomes(results, judge.confidence),
        probes,
        list(zip(questions.prompts, base.continuations, adapted.continuations, strict=True)),
        searched,
    )


def _without_contaminated(
    config: CptConfig,
    suites: Sequence[Suite],
    base: Answers,
    adapted: Answers,
    judge: Judge,
    results: list[SuiteResult],
    report: Callable[[str], None],
) -> tuple[Searched, list[SuiteResult]]:
    """What was found in the training shards, and the results with those of the clean items beside them."""
    measured = [i for i, result in enumerate(results) if result.comparison is not None]
    scores = {suites[i].name: base.suites[suites[i].name] for i in measured}
    searched = search_items(config, scores, report)
    if not searched.sources:
        return searched, results
    for i in measured:
        name = suites[i].name
        mine = searched.leaked[name]
        clean = np.setdiff1d(np.arange(len(scores[name].values)), mine)
        without = None
        if mine and len(clean):
            without = compare_items(suites[i], scores[name], adapted.suites[name], judge, clean)
        results[i] = replace(results[i], contaminated=len(mine), clean=without, unchecked=searched.unchecked[name])
    return searched, results


def search_items(
    config: CptConfig, scores: Mapping[str, SuiteScores], report: Callable[[str], None] = lambda line: None
) -> Searched:
    """Look the items behind `scores` (suite -> what any model said) up in the training shards of `config.data`.

    Raises UserError for a damaged shard.
    """
    n = config.suites.ngram
    folders = {name: as_folder(shards_folder(config.data)) / name for name in config.data.sources}
    there = [name for name, folder in folders.items() if is_complete(folder)]
    missing = [name for name in folders if name not in there]
    if not there:
        return Searched([], missing, 0, 0)
    fingerprint = tokenizer_fingerprint(config.data.tokenizer)
    sources = [Source.open(folders[name], fingerprint) for name in there]
    tokenizer = Tokenizer.from_file(str(Path(config.data.tokenizer) / "tokenizer.json"))
    places = [(name, number) for name, score in scores.items() for number in range(len(score.texts))]
    index = NgramIndex([text for score in scores.values() for text in score.texts], n, [name for name, _ in places])
    found = search(sources, index, tokenizer.decode_batch, n, report)
    leaked: dict[str, list[int]] = {name: [] for name in scores}
    evidence = []
    for item, where in sorted(found.items.items()):
        name, number = places[item]
        leaked[name].append(number)
        evidence.append((name, scores[name].keys[number], where))
    unchecked = Counter(places[item][0] for item in index.unchecked)
    short = {name: unchecked[name] for name in scores}
    return Searched(there, missing, found.documents, found.tokens, evidence, leaked, short)
