"""Many cases of context parallelism in the same four processes, each compared with one process.

Started by torchrun with a folder that has models; the first rank writes `errors.json` there: kind -> case -> the
largest relative error of its numbers. Of the kind "other documents" it is 0 where they are bit-equal, else 1.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from cpt_dist.config import CptConfig, EngineConfig, ModelConfig, OptimizerConfig, StageConfig
from cpt_dist.data.batches import pack_documents
from cpt_dist.engine import distributed
from cpt_dist.engine.build import build_engine
from cpt_dist.engine.context.attention import METHODS
from cpt_dist.engine.context.parallel import ContextParallel
from cpt_dist.engine.context.split import split_sequence
from cpt_dist.model.attention import Documents, Heads, choose_backend
from cpt_dist.model.load import load_model

LENGTHS = {
    "one document": [96],
    "documents across the cuts": [10, 30, 1, 36, 19],
    "length that divides by nothing": [50, 47, 4],
    "shorter than the ranks": [2],
}
HEADS = {"all_gather": (9, 3), "ring": (9, 3), "ulysses": (8, 4)}


def relative(ours, theirs):
    return float((ours - theirs).double().norm() / max(1e-12, float(theirs.double().norm())))


class Attention:
    """Random queries, keys, values and an upstream gradient of packed documents."""

    def __init__(self, lengths, heads, changed=None):
        torch.manual_seed(7)
        num, (queries, keys) = sum(lengths), heads
        self.inputs = [torch.randn(count, num, 16) for count in (queries, keys, keys)]
        self.above = torch.randn(num, queries, 16)
        self.borders = [0, *np.cumsum(lengths).tolist()]
        if changed is not None:
            for part in self.inputs:
                part[:, self.borders[changed] : self.borders[changed + 1]] += 1.0

    def alone(self, window):
        """[attended, gradients of query, key and value] computed here."""
        parts = [part.clone().requires_grad_() for part in self.inputs]
        documents = Documents.of(torch.tensor(self.borders), self.borders[-1])
        backend = choose_backend("auto", "cpu", torch.float32)
        attended = documents.attend(backend, Heads(*parts, window=window))
        attended.backward(self.above)
        return [attended.detach(), *(part.grad.transpose(0, 1) for part in parts)]

    def shared(self, context, window):
        """The same, tokens first, computed by a context group: this rank's tokens, others 0."""
        split = split_sequence(self.borders, context.size, (window,), whole_parts=context.method == "ulysses")
        padding = split.borders[-1] - split.num_tokens
        own = torch.cat([torch.arange(*span) for span in split.parts[context.rank]])
        padded = [torch.nn.functional.pad(part, (0, 0, 0, padding)) for part in self.inputs]
        parts = [part[:, own].clone().requires_grad_() for part in padded]
        documents = Documents.of(torch.tensor(split.borders), split.borders[-1])
        method = METHODS[context.method](split, context._group, torch.device("cpu"))
        backend = choose_backend("auto", "cpu", torch.float32, features=method.features)
        attended = method.attend(backend, Heads(*parts, window=window), documents)
        attended.backward(torch.nn.functional.pad(self.above, (0, 0, 0, 0, 0, padding))[own])
        results = []
        for one in [attended.detach(), *(part.grad.transpose(0, 1) for part in parts)]:
            results.append(one.new_zeros(split.borders[-1], *one.shape[1:]).index_copy_(0, own, one))
        return [one[: split.num_tokens] for one in results]


def attention_cases(world):
    errors, crossing = {}, {}
    for size in (2, 4):
        for method in METHODS:
            context = ContextParallel(world, size, method)
            for name, lengths in LENGTHS.items():
                for window in (None, 6) if len(lengths) > 3 else (None,):
                    case = Attention(lengths, HEADS[method])
                    ours = [world.sum(one) / context.data_size for one in case.shared(context, window)]
                    pairs = zip(ours, case.alone(window), strict=True)
                    errors[f"{method} of {size}, {name}, window {window}"] = max(relative(*pair) for pair in pairs)
            lengths, changed = LENGTHS["documents across the cuts"], 1
            outside = [slice(0, 10), slice(40, 96)]
            results = [Attention(lengths, HEADS[method], one).shared(context, None) for one in (None, changed)]
            same = all(torch.equal(a[span], b[span]) for a, b in zip(*results, strict=True) for span in outside)
            moved = max(float((a[10:40] - b[10:40]).abs().max()) for a, b in zip(*results, strict=True))
            everywhere = world.gather((same, moved))
            kept = all(same for same, _ in everywhere) and max(moved for _, moved in everywhere) > 0
            crossing[f"{method} of {size}"] = 0.0 if kept else 1.0
    return {"attention": errors, "other documents": crossing}


def batches():
    """Two micro-batches of packed documents whose rows straddle the cuts, of different lengths."""
    generator = np.random.default_rng(3)
    layouts = ([40, 1, 61, 26], [7, 90])
    return [pack_documents([generator.integers(0, 1001, n) for n in lengths]) for lengths in layouts]


def reference(path, num_groups):
    """(nll of each micro-batch of a group, gradients over all groups), by a model that is alone."""
    model = load_model(ModelConfig(path=str(path)))
    divisor = num_groups * sum(batch.num_target_tokens for batch in batches())
    nll = []
    for batch in batches():
        inputs = (batch.input_ids, batch.labels, batch.position_ids, batch.cu_seqlens)
        loss, one = model(*inputs, divisor=divisor / num_groups)
        loss.backward()
        nll.append(one)
    return nll, {model.hf_name(name): p.grad for name, p in model.named_parameters()}, divisor


def gradients(engine):
    found = {}
    for name, parameter in engine._named_parameters():
        if engine.name == "fsdp":
            found[name] = parameter.grad.full_tensor()
        elif engine.stage == 0:
            found[name] = parameter.grad
        else:
            from deepspeed.utils import safe_get_full_grad

            found[name] = safe_get_full_grad(parameter)
    return found


def engine_case(world, path, size, method, checkpointing, **engine):
    config = CptConfig(stages=[StageConfig()])
    config.engine = EngineConfig(precision="fp32", context_parallel=size, context_parallel_method=method, **engine)
    config.optimizer = OptimizerConfig()
    model = load_model(ModelConfig(path=str(path), activation_checkpointing=checkpointing))
    built = build_engine(model, config, world, torch.float32)
    built.context.enter(config, 0)
    groups = built.context.now.data_size
    nll, grads, divisor = reference(path, groups)
    ours = []
    for number, batch in enumerate(batches(), start=1):
        ours.append(built.forward_backward(batch, divisor, number == 2))
    errors = [relative(world.sum(one) / groups, two.detach()) for one, two in zip(ours, nll, strict=True)]
    found = gradients(built)
    errors += [relative(found[name], gradient) for name, gradient in grads.items()]
    norm = torch.nn.utils.get_total_norm(list(grads.values()))
    errors.append(abs(built.step(0.0) / float(norm) - 1))
    batch = batches()[0]
    scored = built.nll(batch.input_ids, batch.labels, batch.position_ids, batch.cu_seqlens)
    errors.append(relative(world.sum(scored) / groups, nll[0].detach()))
    return max(errors)


def engine_cases(world, folder):
    errors = {}

    def run(case, model, size, method, checkpointing=False, /, **engine):
        found = world.gather(engine_case(world, folder / model, size, method, checkpointing, **engine))
        errors[f"{case}, {method} of {size}, {model}"] = max(found)

    for size in (2, 4):
        for method in METHODS:
            run("fsdp", "llama", size, method, name="fsdp")
            run("zero 3", "llama", size, method, name="zero", zero_stage=3)
    run("recomputed fsdp", "llama", 2, "ring", True, name="fsdp")
    run("recomputed zero 2", "llama", 4, "all_gather", True, name="zero", zero_stage=2)
    run("zero 1", "llama", 2, "ulysses", name="zero", zero_stage=1)
    run("zero 0", "llama", 2, "ring", name="zero", zero_stage=0)
    run("fsdp", "mistral", 4, "ring", name="fsdp")
    run("fsdp", "gpt2", 2, "all_gather", name="fsdp")
    return errors


def main():
    folder = Path(sys.argv[1])
    world = distributed.start(EngineConfig(threads=1, timeout_seconds=240))
    errors = attention_cases(world) | {"engines": engine_cases(world, folder)}
    if world.is_first:
        (folder / "errors.json").write_text(json.dumps(errors))
    distributed.stop()


if __name__ == "__main__":
    main()
