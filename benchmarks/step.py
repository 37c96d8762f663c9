"""A whole optimizer step of SmolLM2-135M on a CPU beside two peers: python benchmarks/step.py [--quick]

The same random weights of SmolLM2-135M's shape, the same tokens, fp32, two threads (--threads): forward, backward,
clipping and AdamW. Ours is the FSDP2 engine on one process, as `python launch/train.py kernels=auto` runs it; a row of
its own has the default, kernels=model. The peers are the Trainer of transformers and litgpt with its model and loss,
each in several settings (attention, torch.compile), of which the fastest counts. Where a row holds several documents,
the Trainer gets a dense mask that keeps them apart; litgpt has none, so its loss is another one there, and the row says
so. Seconds are the median of the repeats after the warm-up, by the clock and by the CPU (user and system, all threads;
on a machine that others use too only the second is a measure, with --threads 1, since threads that wait take CPU time);
`ratio` above 1: ours is better. "share of the fp32 GEMM peak" is 6 operations a parameter and token, and those of
attention within documents, over the time and the best rate of torch.mm here.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peers import peer_python  # noqa: E402

RESULTS = Path(__file__).with_name("results") / "step.json"
LITGPT = "litgpt 0.5.13"
LAYERS = "num_hidden_layers"
FULL_LAYERS = 30
SHARE_GOAL = 0.85
SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    LAYERS: FULL_LAYERS,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5,
}
"""SmolLM2-135M's config.json."""
CASES = {"4 rows of 512 tokens": (4, 512, 1), "1 row of 4,096 tokens in 8 documents": (1, 4096, 8)}
"""Name -> rows, tokens of a row, documents of equal length in a row."""
GOALS = dict(zip(CASES, (1.2, 2.0), strict=True))
QUICK_LAYERS = 4
"""Layers of the model with --quick: enough for its layers to weigh, few enough for two minutes."""
SETTINGS = {
    "ours": {"ours": "kernels=auto", "ours+model": "kernels=model"},
    "trainer": {"trainer": "sdpa", "trainer+eager": "eager", "trainer+compile": "sdpa, compiled"},
    "litgpt": {"litgpt": "eager mode", "litgpt+compile": "compiled"},
}
"""Who -> argument of a measurement -> its settings in words."""
QUICK = ("ours", "trainer", "litgpt")
EAGER_TOKENS = 512
"""Longest row whose scores the eager attention of transformers can hold in memory, for 30 layers."""
WARM_UP = 1
LEARNING_RATE = 1e-5
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]),
    "DS_ACCELERATOR": "cpu",
}
Step = Callable[[], float]


def make_model(folder: Path) -> None:
    """Random weights in `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)


def tokens_of(case: str) -> Any:
    """int64 [rows, tokens]."""
    import torch

    rows, tokens, _ = CASES[case]
    return torch.randint(0, SHAPE["vocab_size"], (rows, tokens), generator=torch.Generator().manual_seed(0))


def labels_of(case: str) -> Any:
    """int64 [rows, tokens]: the token that follows in the same document, -100 where there is none."""
    import torch

    ids, (_, tokens, documents) = tokens_of(case), CASES[case]
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    labels[:, tokens // documents - 1 :: tokens // documents] = -100
    return labels


def our_step(folder: Path, case: str, kernels: str) -> Step:
    """A step of the FSDP2 engine on one process, with every operation of its layers by `kernels`."""
    import torch

    from cpt_dist.config import CptConfig, ModelConfig, StageConfig
    from cpt_dist.data.batch import Batch
    from cpt_dist.engine import distributed
    from cpt_dist.engine.build import build_engine
    from cpt_dist.kernels_config import LAYER_OPERATIONS, KernelsConfig
    from cpt_dist.model.load import load_model

    config = CptConfig(run_dir="unused", model=ModelConfig(path=str(folder)))
    config.engine.threads = torch.get_num_threads()
    config.stages = [StageConfig(tokens="1", batch_tokens="1")]
    if kernels != "model":
        config.kernels = KernelsConfig(**dict.fromkeys((*LAYER_OPERATIONS, "adamw"), kernels))
    world = distributed.start(config.engine)
    engine = build_engine(load_model(config.model, kernels=config.kernels), config, world, torch.float32)
    engine.context.enter(config, 0)
    rows, tokens, documents = CASES[case]
    number = rows * documents
    borders = torch.arange(number + 1, dtype=torch.int32) * (tokens // documents)
    none, zero = torch.empty(2, 0, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
    doc_ids = torch.zeros(number, 16, dtype=torch.uint8)
    bounds = torch.arange(rows + 1) * tokens
    ids = tokens_of(case).flatten()
    batch = Batch(ids, borders, doc_ids, borders.diff(), zero, zero, bounds, zero, zero, none, none, none)

    def step() -> float:
        nll = engine.forward_backward(batch, batch.num_target_tokens, True)
        engine.step(LEARNING_RATE)
        return float(nll.sum()) / batch.num_target_tokens

    return step


def _attention_mask(case: str) -> Any:
    """bool [1, 1, tokens, tokens] of documents that are apart; None where a row is one document."""
    import torch

    _, tokens, documents = CASES[case]
    if documents == 1:
        return None
    place = torch.arange(tokens)
    document = place // (tokens // documents)
    return ((place[:, None] >= place) & (document[:, None] == document))[None, None]


def _position_ids(case: str) -> Any:
    import torch

    rows, tokens, documents = CASES[case]
    return torch.arange(tokens // documents).repeat(documents).expand(rows, -1)


def trainer_steps(folder: Path, case: str, steps: int, mode: str) -> list[dict[str, float]]:
    """Seconds, CPU seconds and loss of each step of transformers' Trainer."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    attention = "eager" if mode == "eager" else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    rows, mask = CASES[case][0], _attention_mask(case)
    row = {"input_ids": tokens_of(case), "labels": labels_of(case), "position_ids": _position_ids(case)}
    found: list[dict[str, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begin = now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            found.append(since(self.begin))

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                found[-1]["loss"] = float(logs["loss"])

    def collate(_: Any) -> dict[str, Any]:
        # The labels are those of the next tokens already, which the Trainer's loss takes as shift_labels.
        batch = {"input_ids": row["input_ids"], "position_ids": row["position_ids"]}
        batch |= {"labels": row["labels"], "shift_labels": row["labels"]}
        return batch if mask is None else batch | {"attention_mask": mask}

    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=rows,
        max_steps=steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        use_cpu=True,
        torch_compile=mode == "compile",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    data = [{"number": number} for number in range(rows * steps)]
    Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[Clock()]).train()
    return found


def litgpt_step(folder: Path, case: str, compiled: bool) -> Step:
    """A step as litgpt's pretraining makes it, on the same weights; each row is one document to it."""
    import torch
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import chunked_cross_entropy
    from safetensors.torch import load_file

    config = Config.from_name("SmolLM2-135M", n_layer=json.loads((folder / "config.json").read_text())[LAYERS])
    weights = load_file(folder / "model.safetensors")
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    state: dict[str, Any] = {}
    copy_weights_hf_llama(config, {}, state, weights)
    model = GPT(config)
    model.load_state_dict(state, strict=False)
    model.transformer.wte.weight = model.lm_head.weight
    model.max_seq_length = CASES[case][1]
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.1, fused=True)
    forward = torch.compile(model) if compiled else model
    ids, labels = tokens_of(case), labels_of(case)

    def step() -> float:
        loss = chunked_cross_entropy(forward(ids), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def now() -> tuple[float, float]:
    """Clock and CPU seconds of this process."""
    return time.perf_counter(), time.process_time()


def since(begin: tuple[float, float]) -> dict[str, float]:
    """Seconds and CPU seconds since `begin`."""
    return {"seconds": time.perf_counter() - begin[0], "cpu_seconds": time.process_time() - begin[1]}


def gemm_peak() -> dict[str, float]:
    """Seconds and CPU seconds an operation of the fastest of the step's own shapes of torch.mm in fp32."""
    import torch

    best = {"seconds": 1.0, "cpu_seconds": 1.0}
    for rows, inner, columns in ((2048, 576, 1536), (2048, 1536, 576), (512, 576, 49152), (2048, 2048, 2048)):
        left, right = torch.randn(rows, inner), torch.randn(inner, columns)
        for _ in range(8):
            begin = now()
            torch.mm(left, right)
            taken = since(begin)
            best = {clock: min(best[clock], taken[clock] / (2 * rows * inner * columns)) for clock in best}
    return best


def operations(case: str, layers: int) -> float:
    """Of one step: forward and twice that backward; attention reaches half of a document's pairs on average."""
    rows, tokens, documents = CASES[case]
    hidden, middle = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    share = SHAPE["num_key_value_heads"] / SHAPE["num_attention_heads"]
    weights = layers * (hidden * hidden * (2 + 2 * share) + 3 * hidden * middle) + SHAPE["vocab_size"] * hidden
    attention = layers * 2 * 2 * hidden * (tokens // documents) / 2
    return 3 * rows * tokens * (2 * weights + attention)


def measure(kind: str, folder: Path, case: str, repeat: int) -> None:
    """Print {"seconds", "cpu_seconds", "bytes", "loss"} as the last line; the loss is that of the first step."""
    steps = WARM_UP + repeat
    name, _, mode = kind.partition("+")
    if name == "gemm":
        print(json.dumps(gemm_peak()))
        return
    if name == "trainer":
        found = trainer_steps(folder, case, steps, mode)
    else:
        ours = name == "ours"
        step = our_step(folder, case, mode or "auto") if ours else litgpt_step(folder, case, mode == "compile")
        found = []
        for _ in range(steps):
            begin = now()
            loss = step()
            found.append(since(begin) | {"loss": loss})
    result = {clock: statistics.median(one[clock] for one in found[WARM_UP:]) for clock in ("seconds", "cpu_seconds")}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result | {"bytes": peak, "loss": found[0]["loss"]}), flush=True)


class Comparison:
    """The model of `folder`, measured by everyone, and the rows of the table."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder, self.arguments = folder, arguments
        self.layers = SHAPE[LAYERS]
        self.rows: list[dict[str, Any]] = []

    def run(self, kind: str, case: str) -> dict[str, float] | None:
        """Measure in a process of its own; None, with the reason printed, where a peer can't run."""
        python = sys.executable
        if kind.startswith("litgpt"):
            try:
                python = str(peer_python(LITGPT, self.arguments.cache))
            except RuntimeError as error:
                print(f"{kind}: not installed ({error})", file=sys.stderr)
                return None
        words = [python, __file__, "--measure", kind, "--model", str(self.folder), "--case", case]
        words += ["--repeat", str(self.arguments.repeat)]
        environment = ENVIRONMENT | {"OMP_NUM_THREADS": str(self.arguments.threads)}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            message = f"{kind}, {case}: failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
            if kind.startswith("ours"):
                raise SystemExit(f"{done.stderr}\n{message}")
            print(message, file=sys.stderr)
            return None
        found = json.loads(done.stdout.strip().splitlines()[-1])
        if "loss" in found:
            times = f"{found['seconds']:7.2f} s  {found['cpu_seconds']:7.2f} CPU s  {found['bytes'] / 2**20:6.0f} MiB"
            print(f"{kind:16} {case:38} {times}  loss {found['loss']:.5f}", flush=True)
        return found

    def best(self, who: str, case: str) -> dict[str, Any] | None:
        """The measurement of the fastest settings by the chosen clock, with them in words; None where none ran."""
        found = []
        for kind, words in SETTINGS[who].items():
            too_long = kind == "trainer+eager" and CASES[case][1] > EAGER_TOKENS
            if too_long or (self.arguments.quick and kind not in QUICK) or kind == "ours+model":
                continue
            if one := self.run(kind, case):
                found.append(one | {"settings": words})
        return min(found, key=lambda one: one[self.arguments.clock], default=None)

    def compare(self, case: str, peak: dict[str, float]) -> None:
        """Add the rows of a case."""
        rows, tokens, documents = CASES[case]
        ours = self.best("ours", case)
        assert ours is not None
        others = {"litgpt": self.best("litgpt", case), "trainer": self.best("trainer", case)}
        if not self.arguments.quick:
            others["ours+model"] = self.run("ours+model", case)
        for who, peer in others.items():
            if peer is None:
                continue
            same = who != "litgpt" or documents == 1
            # Trainer rounds the loss that it logs to four decimal places.
            if same and abs(peer["loss"] - ours["loss"]) > 1e-4 * ours["loss"]:
                raise SystemExit(f"{case}: our loss is {ours['loss']}, that of {who} {peer['loss']}")
            name = {"trainer": "transformers Trainer", "litgpt": LITGPT, "ours+model": "ours"}[who]
            name += f" ({peer.get('settings', 'kernels=model, the default')}"
            name += ")" if same else ", documents not kept apart)"
            for clock, unit in (("seconds", "tokens/s"), ("cpu_seconds", "tokens/CPU-s")):
                speeds = [rows * tokens / one[clock] for one in (ours, peer)]
                self.add(f"optimizer step, {case}", unit, *speeds, name, GOALS[case] if who != "ours+model" else None)
            self.add(f"peak memory, {case}", "bytes", ours["bytes"], peer["bytes"], name, None, less=True)
        for clock, unit in (("seconds", "share"), ("cpu_seconds", "share of CPU time")):
            share = operations(case, self.layers) * peak[clock] / ours[clock]
            self.add(f"share of the fp32 GEMM peak, {case}", unit, share, 1.0, "torch.mm alone", SHARE_GOAL)

    def add(
        self, metric: str, unit: str, ours: float, peer: float, name: str, goal: float | None, less: bool = False
    ) -> None:
        """One row; `less`: a smaller value is the better one."""
        metric += f", {self.layers} layers of 30" if self.layers != FULL_LAYERS else ""
        ratio = peer / ours if less else ours / peer
        row = {"metric": metric, "unit": unit, "ours": ours, "peer": peer, "peer_name": name, "ratio": ratio}
        self.rows.append(row | ({} if goal is None else {"goal": goal}))

    def show(self) -> None:
        """Print the table and write it as JSON."""
        for one in self.rows:
            what = f"{one['metric']:66} {one['ours']:14.2f} {one['peer']:14.2f} {one['unit']:17}"
            print(f"{what} {one['ratio']:5.2f} (goal {one.get('goal', 'none')})  {one['peer_name']}")
        self.arguments.out.parent.mkdir(parents=True, exist_ok=True)
        self.arguments.out.write_text(json.dumps({"rows": self.rows}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 layers, one step after the warm-up, peers as they come")
    parser.add_argument("--repeat", type=int, default=None, help="steps of each case, of which the median counts")
    parser.add_argument("--layers", type=int, default=None, help=f"layers of the model; {FULL_LAYERS} without --quick")
    parser.add_argument("--threads", type=int, default=2, help="of every process; 1 where others use the machine too")
    parser.add_argument("--only", choices=list(CASES), action="append", help="this case; may be repeated")
    parser.add_argument(
        "--clock", choices=("seconds", "cpu_seconds"), default="seconds", help="which picks a peer's fastest settings"
    )
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "cache" / "peers", help="peers' environments")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.repeat = arguments.repeat or (1 if arguments.quick else 3)
    if arguments.measure:
        measure(arguments.measure, arguments.model, arguments.case, arguments.repeat)
        return
    SHAPE[LAYERS] = arguments.layers or (QUICK_LAYERS if arguments.quick else FULL_LAYERS)
    with tempfile.TemporaryDirectory(prefix="step-benchmark-") as scratch:
        make_model(Path(scratch))
        comparison = Comparison(Path(scratch), arguments)
        peak = comparison.run("gemm", next(iter(CASES)))
        assert peak is not None
        for case in arguments.only or CASES:
            comparison.compare(case, peak)
            comparison.show()  # what is measured is not lost where a later peer is stopped


if __name__ == "__main__":
    main()
