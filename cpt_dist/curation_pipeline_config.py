"""How a source's raw text is curated as a whole: on what, how duplicates are found, what it is kept apart from.

What is done to a single document (repair, scores, PII, cleaners) is in `curation_config.py`; docs/curation.md explains
both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

EXECUTORS = ("local", "slurm", "ray")
PREPARE_WHAT = ("shards", "curate", "report")
DOCUMENT, SPANS, COUNT = "document", "spans", "count"
CONTAMINATION_ACTIONS = (DOCUMENT, SPANS, COUNT)


@dataclass
class NearDuplicatesConfig:
    enabled: bool = True
    """Leave out all but the best of documents that are nearly the same, over all curated sources."""
    threshold: float = 0.75
    """Least Jaccard similarity of two documents' sets of shingles, as estimated from `permutations`, that makes one of
    them a duplicate."""
    shingle_words: int = 5
    """Words in a row that make a shingle, in lower case and without punctuation; each CJK character is a word."""
    permutations: int = 128
    """Hash functions of MinHash; the estimate of a similarity J is off by about sqrt(J (1 - J) / permutations)."""
    keep_by: str = "quality"
    """Score whose highest value says which of the documents stays, within the same priority; then the smallest id."""


@dataclass
class ParagraphDuplicatesConfig:
    enabled: bool = False
    """Cut out paragraphs that stood in a document before: in one of a higher priority, else in an earlier one."""
    min_bytes: int = 200
    """Shorter paragraphs stay wherever they occur."""


@dataclass
class DecontaminationConfig:
    files: list[str] = field(default_factory=list)
    """Files, folders or globs of evaluation items, such as questions with answers, in any form that `raw` may have.
    Documents with `ngram` words of an item in a row are contaminated, and those nearly equal to one duplicates."""
    suites: bool = True
    """The items of the suite files in `suites.run` are evaluation items too. Those of lm-evaluation-harness tasks
    aren't; write them into one of `files`."""
    held_out: list[str] = field(default_factory=list)
    """Files, folders or globs of whole texts that are evaluated on. Only documents equal or nearly equal to one are
    left out: so many words in a row are common in texts of one domain."""
    fields: list[str] = field(
        default_factory=lambda: ["text", "prompt", "question", "passage", "choices", "answer", "completion", "solution"]
    )
    """Fields of an item whose texts, joined by line ends, are searched for; those that it lacks are left out."""
    ngram: int = 13
    """Words in a row in common that make a document contaminated; fewer for items that are shorter."""
    action: str = DOCUMENT
    """What becomes of a contaminated document: document (it is dropped), spans (the words and `margin_characters` on
    both sides are cut out, and what is left are documents of their own), or count (it stays, and is counted)."""
    margin_characters: int = 200
    """spans: characters that go on either side of the words."""
    min_piece_characters: int = 200
    """spans: what is left between two cuts goes with them if it is shorter."""
    max_pieces: int = 10
    """spans: a document of which more pieces would be left is dropped as a whole."""


@dataclass
class SlurmCurationConfig:
    partition: str = ""
    """Partition of the array jobs."""
    time: str = "24:00:00"
    """Time limit of an array's task."""
    cpus_per_task: int = 1
    """Cores of an array's task."""
    mem_per_cpu_gb: int = 4
    """Memory of an array's task, for each core."""
    env_command: str = ""
    """Shell line that a job runs first, such as a module load; the environment of prepare itself is found anyway."""
    sbatch_args: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch, such as {account: nlp}."""
    poll_seconds: float = 10.0
    """Time between looks at the queue."""


@dataclass
class CurationPipelineConfig:
    folder: str = "${data.shards}.curated"
    """Folder of the curated documents, one sub-folder a source, and of the work on them."""
    executor: str = "local"
    """What runs the tasks: local (processes of this host), slurm (array jobs) or ray. In launch/prepare.py also as
    plain executor=slurm."""
    tasks: int = 0
    """Tasks that the work of each stage is dealt out to; 0: one for each core that prepare may use. The result is the
    same for any number. There also as plain tasks=200."""
    workers: int = 0
    """Tasks at one time: 0 is one for each core (local) or all (slurm, ray)."""
    block_bytes: str = "32M"
    """Raw bytes that are read and written as one piece: a part of a large file or a group of small ones. It bounds the
    memory of a task and what is lost by a kill."""
    keep_work: bool = False
    """Keep the intermediate files (about twice the compressed text) of a complete curation."""
    near_duplicates: NearDuplicatesConfig = field(default_factory=NearDuplicatesConfig)
    paragraph_duplicates: ParagraphDuplicatesConfig = field(default_factory=ParagraphDuplicatesConfig)
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    slurm: SlurmCurationConfig = field(default_factory=SlurmCurationConfig)


def curation_pipeline_problems(config: CurationPipelineConfig) -> Iterator[str]:
    """What is wrong with the values, one line each, without the key of the configuration itself."""
    yield from _unknown("executor", config.executor, EXECUTORS)
    yield from _unknown("decontamination.action", config.decontamination.action, CONTAMINATION_ACTIONS)
    near = config.near_duplicates
    yield from _too_small(
        {
            "tasks": (config.tasks, 0),
            "workers": (config.workers, 0),
            "near_duplicates.shingle_words": (near.shingle_words, 1),
            "near_duplicates.permutations": (near.permutations, 16),
            "paragraph_duplicates.min_bytes": (config.paragraph_duplicates.min_bytes, 1),
            "decontamination.ngram": (config.decontamination.ngram, 2),
            "decontamination.margin_characters": (config.decontamination.margin_characters, 0),
            "decontamination.min_piece_characters": (config.decontamination.min_piece_characters, 1),
            "decontamination.max_pieces": (config.decontamination.max_pieces, 1),
            "slurm.cpus_per_task": (config.slurm.cpus_per_task, 1),
            "slurm.mem_per_cpu_gb": (config.slurm.mem_per_cpu_gb, 1),
        }
    )
    if not 0 < near.threshold <= 1:
        yield f"near_duplicates.threshold: {near.threshold} must lie within 0 (exclusive) to 1, such as 0.75"
    if not config.slurm.poll_seconds > 0:
        yield f"slurm.poll_seconds: {config.slurm.poll_seconds} must be positive"
    if config.executor == "slurm" and not config.slurm.partition:
        yield "slurm.partition is empty; name the partition that the array jobs go to (sinfo lists them)"
    if config.decontamination.files and not config.decontamination.fields:
        yield "decontamination.fields is empty; name the fields of an item that are searched for"


def _unknown(key: str, value: str, known: Iterable[str]) -> Iterator[str]:
    if value not in known:
        yield f"{key}: '{value}' is unknown; it is one of {', '.join(known)}"


def _too_small(values: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    for key, (value, low) in values.items():
        if value < low:
            yield f"{key}: {value} must be at least {low}"
