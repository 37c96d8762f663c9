"""A whole optimizer step of SmolLM2-135M on a CPU beside two peers: python benchmarks/step.py [--quick]

The same random weights of SmolLM2-135M's shape, the same tokens, fp32, two threads: forward, backward, clipping and
AdamW. Ours is the FSDP2 engine on one process, as `python launch/train.py` runs it. The peers are the Trainer of
transformers and litgpt with its own model and loss, each eager and with torch.compile, of which the faster counts.
Where a row holds several documents, the Trainer gets a dense mask that keeps them apart; litgpt has none, so its loss
is another one there, and the row says so. Seconds by the clock, the median of the repeats after two steps of warming up,
`ratio` is tokens a second, ours / peer: above 1, ours is better. "share of the fp32 GEMM peak" is 6 operations a
parameter and token, and those of attention within documents, over the time and the best rate of torch.mm here.
"""

from __future__ import annotations

import argparse
import json
import os
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
THREADS = 2
SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
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
WARM_UP = 2
LEARNING_RATE = 1e-5
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": str(THREADS),
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


def our_step(folder: Path, case: str) -> Step:
    """A step of the FSDP2 engine on one process."""
    import torch

    from cpt_dist.config import CptConfig, ModelConfig, StageConfig
    from cpt_dist.data.batch import Batch
    from cpt_dist.engine import distributed
    from cpt_dist.engine.build import build_engine
    from cpt_dist.model.load import load_model

    config = CptConfig(run_dir="unused", model=ModelConfig(path=str(folder)))
    config.engine.threads = THREADS
    config.stages = [StageConfig(tokens="1", batch_tokens="1")]
    world = distributed.start(config.engine)
    engine = build_engine(load_model(config.model), config, world, torch.float32)
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


def trainer_steps(folder: Path, case: str, steps: int, compiled: bool) -> list[dict[str, float]]:
    """Seconds and loss of each step of transformers' Trainer."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    rows, mask = CASES[case][0], _attention_mask(case)
    row = {"input_ids": tokens_of(case), "labels": labels_of(case), "position_ids": _position_ids(case)}
    found: list[dict[str, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begin = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            found.append({"seconds": time.perf_counter() - self.begin})

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
        torch_compile=compiled,
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

    torch.set_num_threads(THREADS)
    config = Config.from_name("SmolLM2-135M")
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


def gemm_peak() -> float:
    """Operations a second of the fastest of the step's own shapes of torch.mm in fp32."""
    import torch

    torch.set_num_threads(THREADS)
    best = 0.0
    for rows, inner, columns in ((2048, 576, 1536), (2048, 1536, 576), (512, 576, 49152), (2048, 2048, 2048)):
        left, right = torch.randn(rows, inner), torch.randn(inner, columns)
        for _ in range(8):
            begin = time.perf_counter()
            torch.mm(left, right)
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - begin))
    return best


def operations(case: str) -> float:
    """Of one step: forward and twice that backward; attention reaches half of a document's pairs on average."""
    rows, tokens, documents = CASES[case]
    hidden, middle, layers = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["num_hidden_layers"]
    share = SHAPE["num_key_value_heads"] / SHAPE["num_attention_heads"]
    weights = layers * (hidden * hidden * (2 + 2 * share) + 3 * hidden * middle) + SHAPE["vocab_size"] * hidden
    attention = layers * 2 * 2 * hidden * (tokens // documents) / 2
    return 3 * rows * tokens * (2 * weights + attention)


def measure(kind: str, folder: Path, case: str, repeat: int) -> None:
    """Print {"seconds", "loss"} as the last line; the loss is that of the first step."""
    steps = WARM_UP + repeat
    name, _, mode = kind.partition("+")
    if name == "gemm":
        print(json.dumps({"peak": gemm_peak()}))
        return
    if name == "trainer":
        found = trainer_steps(folder, case, steps, mode == "compile")
    else:
        step = our_step(folder, case) if name == "ours" else litgpt_step(folder, case, mode == "compile")
        found = []
        for _ in range(steps):
            begin = time.perf_counter()
            loss = step()
            found.append({"seconds": time.perf_counter() - begin, "loss": loss})
    seconds = statistics.median(one["seconds"] for one in found[WARM_UP:])
    print(json.dumps({"seconds": seconds, "loss": found[0]["loss"]}), flush=True)


def run(kind: str, folder: Path, case: str, repeat: int, cache: Path) -> dict[str, float] | None:
    """Measure in a process of its own; None, with the reason printed, where a peer can't run."""
    python = sys.executable
    if kind.startswith("litgpt"):
        try:
            python = str(peer_python("litgpt 0.5.13", cache))
        except RuntimeError as error:
            print(f"{kind}: not installed ({error})", file=sys.stderr)
            return None
    words = [python, __file__, "--measure", kind, "--model", str(folder), "--case", case, "--repeat", str(repeat)]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"{kind}, {case}: failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        if kind == "ours":
            raise SystemExit(f"{done.stderr}\n{message}")
        print(message, file=sys.stderr)
        return None
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if "seconds" in found:
        rate = CASES[case][0] * CASES[case][1] / found["seconds"]
        print(f"{kind:16} {case:38} {found['seconds']:7.2f} s  {rate:7.0f} tokens/s  loss {found['loss']:.5f}")
    return found


def compare(folder: Path, cache: Path, repeat: int, modes: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of the table."""
    rows = []
    peak = run("gemm", folder, next(iter(CASES)), 1, cache)
    assert peak is not None
    for case, (number, tokens, documents) in CASES.items():
        ours = run("ours", folder, case, repeat, cache)
        assert ours is not None
        rate = number * tokens / ours["seconds"]
        for peer in ("trainer", "litgpt"):
            found = [one for one in (run(f"{peer}{mode}", folder, case, repeat, cache) for mode in modes) if one]
            if not found:
                continue
            best = min(found, key=lambda one: one["seconds"])
            same = peer == "trainer" or documents == 1
            # Trainer rounds the loss that it logs to four decimal places.
            if same and abs(best["loss"] - ours["loss"]) > 1e-4 * ours["loss"]:
                raise SystemExit(f"{case}: our loss is {ours['loss']}, that of {peer} {best['loss']}")
            name = {"trainer": "transformers Trainer", "litgpt": "litgpt 0.5.13"}[peer]
            other = number * tokens / best["seconds"]
            row = {"metric": f"optimizer step, {case}", "unit": "tokens/s", "ours": rate, "peer": other}
            row |= {"peer_name": name if same else f"{name}, documents not kept apart", "ratio": rate / other}
            rows.append(row | {"goal": GOALS[case]})
        share = operations(case) / ours["seconds"] / peak["peak"]
        metric = f"share of the fp32 GEMM peak, {case}"
        rows.append({"metric": metric, "unit": "share", "ours": share, "peer": 1.0, "peer_name": "torch.mm alone"})
        rows[-1] |= {"ratio": share, "goal": 0.85}
    return rows


def main() -> None:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="each step once after the warm-up, peers only eager")
    parser.add_argument("--repeat", type=int, default=None, help="steps of each case, of which the median counts")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "cache" / "peers", help="peers' environments")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    repeat = options.repeat or (1 if options.quick else 5)
    if options.measure:
        measure(options.measure, options.model, options.case, repeat)
        return
    with tempfile.TemporaryDirectory(prefix="step-benchmark-") as scratch:
        make_model(Path(scratch))
        rows = compare(Path(scratch), options.cache, repeat, ("",) if options.quick else ("", "+compile"))
    for one in rows:
        what = f"{one['metric']:56} {one['ours']:9.2f} {one['peer']:9.2f} {one['unit']:8}"
        print(f"{what} {one['ratio']:5.2f} (goal {one['goal']})  {one['peer_name']}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
