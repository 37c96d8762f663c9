"""Checkpoints of other trainers, made by them in two gloo processes, and their live weights beside.

Started by torchrun with a folder that has `base`. DeepSpeed saves with ZeRO-3 and ZeRO-2, Accelerate with FSDP2, and
HF Trainer with ZeRO-3. Beside each checkpoint `live.safetensors` has the weights as the running model gives them.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import deepspeed
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import save_fsdp_model
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

STEPS = 2


def deepspeed_checkpoint(base, out, stage):
    """Two steps with a frozen norm and two groups, then DeepSpeed's own save."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.model.norm.weight.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": [p for p in trained if p.ndim > 1]}, {"params": [p for p in trained if p.ndim == 1]}]
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=groups,
        config={
            "train_batch_size": 2,
            "zero_optimization": {"stage": stage},
            "optimizer": {"type": "AdamW", "params": {"torch_adam": True, "lr": 1e-2}},
        },
    )
    for _ in range(STEPS):
        ids = torch.randint(0, 1000, (1, 16))
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    engine.save_checkpoint(out)
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        write_live(model, out)


def trainer_checkpoint(base, out):
    """HF Trainer with DeepSpeed's ZeRO-3, which it lets DeepSpeed save."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    zero = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    arguments = TrainingArguments(
        output_dir=str(out),
        use_cpu=True,
        max_steps=STEPS,
        save_steps=STEPS,
        per_device_train_batch_size=1,
        report_to=[],
        disable_tqdm=True,
        deepspeed=zero,
    )
    rows = [{"input_ids": torch.arange(16), "labels": torch.arange(16)} for _ in range(8)]
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        write_live(model, out)


def accelerate_checkpoint(base, out):
    """What Accelerate writes for FSDP2 with a sharded state dict; its own Accelerator has no FSDP on a CPU."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    first = dist.get_rank() == 0
    accelerator = SimpleNamespace(
        is_fsdp2=True, is_main_process=first, process_index=dist.get_rank(), wait_for_everyone=dist.barrier
    )
    PartialState(cpu=True)  # its logger wants one
    save_fsdp_model(plugin, accelerator, model, str(out))
    write_live(model, out)


def write_live(model, out):
    """Every parameter of a running model, whole."""
    live = {}
    for name, parameter in model.named_parameters():
        value = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        live[name] = value.detach().clone().contiguous()
    if dist.get_rank() == 0:
        save_file(live, Path(out) / "live.safetensors")
    dist.barrier()


def main():
    folder = Path(sys.argv[1])
    for stage in (3, 2):
        deepspeed_checkpoint(folder / "base", folder / f"zero{stage}", stage)
    accelerate_checkpoint(folder / "base", folder / "accelerate")
    # Last: once a Trainer has used ZeRO-3, transformers partitions every model that it loads.
    trainer_checkpoint(folder / "base", folder / "trainer")


if __name__ == "__main__":
    main()
