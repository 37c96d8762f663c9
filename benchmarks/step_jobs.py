"""The optimizer steps that step.py compares, each kind in a process of its own: a line in, a step, its figures out.

So two processes can take turns on a machine whose speed drifts. A kind is a name and after a plus its settings.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LAYERS = "num_hidden_layers"
SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    LAYERS: 30,
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
LEARNING_RATE = 1e-5
MARK = "figures: "
GEMM_SECONDS = 2.0
"""How long each shape is multiplied."""
Step = Callable[[], float]


def make_model(folder: Path, layers: int) -> None:
    """Random weights in `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = SHAPE | {LAYERS: layers}
    LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)


def operations(case: str, layers: int) -> float:
    """Of one step: forward and twice that backward; attention reaches half of a document's pairs on average."""
    rows, tokens, documents = CASES[case]
    hidden, middle = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    share = SHAPE["num_key_value_heads"] / SHAPE["num_attention_heads"]
    weights = layers * (hidden * hidden * (2 + 2 * share) + 3 * hidden * middle) + SHAPE["vocab_size"] * hidden
    attention = layers * 2 * 2 * hidden * (tokens // documents) / 2
    return 3 * rows * tokens * (2 * weights + attention)


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


def run_trainer(folder: Path, case: str, compiled: bool) -> None:
    """Let transformers' Trainer take a step for each line of the standard input."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    rows, mask = CASES[case][0], _attention_mask(case)
    # The labels are those of the next tokens already, which the Trainer's loss takes as shift_labels.
    batch = {"input_ids": tokens_of(case), "position_ids": _position_ids(case)}
    batch |= {"labels": labels_of(case), "shift_labels": labels_of(case)}
    batch |= {} if mask is None else {"attention_mask": mask}

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not sys.stdin.readline():
                raise SystemExit
            self.begin = now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.taken = since(self.begin)

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                report(self.taken | {"loss": float(logs["loss"])})

    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=rows,
        max_steps=10**6,
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
    data = [{"number": number} for number in range(rows)]

    def collate(_: Any) -> dict[str, Any]:
        return dict(batch)  # the Trainer may change what it is given

    Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[Turns()]).train()


def now() -> tuple[float, float]:
    """Clock and CPU seconds of this process."""
    return time.perf_counter(), time.process_time()


def since(begin: tuple[float, float]) -> dict[str, float]:
    """Seconds and CPU seconds since `begin`."""
    return {"seconds": time.perf_counter() - begin[0], "cpu_seconds": time.process_time() - begin[1]}


def gemm_peak() -> dict[str, float]:
    """Seconds and CPU seconds an operation of torch.mm in fp32, for the fastest of the step's own shapes."""
    import torch

    rates = []
    for rows, inner, columns in ((2048, 576, 1536), (2048, 1536, 576), (2048, 2048, 2048)):
        left, right, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
        torch.mm(left, right, out=out)
        begin, done = now(), 0
        while time.perf_counter() < begin[0] + GEMM_SECONDS:
            torch.mm(left, right, out=out)
            done += 2 * rows * inner * columns
        rates.append({clock: taken / done for clock, taken in since(begin).items()})
    return min(rates, key=lambda rate: rate["seconds"])


def report(figures: dict[str, float]) -> None:
    """Print a step's figures, with the peak of this process's memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(MARK + json.dumps(figures | {"bytes": peak}), flush=True)


def main() -> None:
    """Take a step for each line of the standard input, until it ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--case", choices=list(CASES))
    arguments = parser.parse_args()
    name, _, mode = arguments.kind.partition("+")
    if name == "trainer":
        run_trainer(arguments.model, arguments.case, mode == "compile")
        return
    if name == "gemm":
        for _ in sys.stdin:
            report(gemm_peak())
        return
    ours = name == "ours"
    make: Any = our_step if ours else litgpt_step
    step = make(arguments.model, arguments.case, (mode or "auto") if ours else mode == "compile")
    for _ in sys.stdin:
        begin = now()
        loss = step()
        report(since(begin) | {"loss": loss})


if __name__ == "__main__":
    main()
