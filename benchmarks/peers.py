"""The peers of training_speed.py: training loops that are not langext's. Each gets the settings of that program as `asked`.

A result has tokens per second and per second of CPU, the peak of memory in bytes, and the number of parameters that learn.
"""

import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

RANK = 87


def memory(device: str) -> int:
    """Most bytes held so far: of the GPU, or of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def mfu(asked: Any, speed: float) -> dict[str, float]:
    """Share of the GPU's bf16 peak; {} where that is not known."""
    from transformers import AutoConfig

    from langext.training import flops

    peak = flops.peak(torch.cuda.get_device_name()) if asked.device == "cuda" else None
    if peak is None:
        return {}
    base = json.loads((next(asked.run.glob("[0-9][0-9]-extend")) / "manifest.json").read_text())["summary"]["base_parameters"]
    learns = trainable(asked.run)
    cost = flops.per_token(base + learns, learns, AutoConfig.from_pretrained(base_of(asked)), asked.length)
    return {"mfu": speed * cost / peak}


def base_of(asked: Any) -> Path:
    """The folder of the base."""
    return Path(json.loads((asked.run / "base" / "manifest.json").read_text())["folder"])


def trainable(run: Path) -> int:
    """Parameters that learn in a run."""
    manifest = json.loads((next(run.glob("[0-9][0-9]-extend")) / "manifest.json").read_text())
    return manifest["summary"]["trainable_parameters"]


def bare(asked: Any) -> dict[str, float]:
    """The peer that anybody who knows PyTorch could write for this one job."""
    from torch import nn
    from torch.nn import functional as F
    from transformers import AutoModelForCausalLM

    device = torch.device(asked.device)
    hidden = trainable(asked.run)
    net: Any = AutoModelForCausalLM.from_pretrained(base_of(asked), dtype=getattr(torch, asked.dtype)).to(device)
    net.requires_grad_(False)
    depth, width = net.config.num_hidden_layers, net.config.hidden_size
    hidden = (hidden // depth - width) // (3 * width)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
            self.down, self.router = nn.Linear(hidden, width, bias=False), nn.Linear(width, 1, bias=False)
            nn.init.zeros_(self.down.weight)

        def forward(self, x: Any) -> Any:
            z = self.router(x)
            return torch.sigmoid(z) * (z > 0) * self.down(F.silu(self.gate(x)) * self.up(x))

    blocks = nn.ModuleList(Block() for _ in range(depth)).to(device)
    for layer, block in zip(net.model.layers, blocks, strict=True):
        layer.mlp.register_forward_hook(lambda _, inputs, output, block=block: output + block(inputs[0]))
    optimizer = torch.optim.AdamW(blocks.parameters(), lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)
    head, chunk, seconds = net.lm_head.weight, 256 if asked.device == "cpu" else 4096, []
    spent: list[float] = []

    def loss_of(x_CD: Any, labels_C: Any) -> Any:
        return F.cross_entropy((x_CD @ head.T).float(), labels_C, reduction="sum")

    for _ in range(asked.steps + 2):
        ids = torch.randint(0, 49152, (asked.sequences, asked.length + 1), generator=generator).to(device)
        began = time.monotonic()
        with torch.autocast(asked.device, torch.bfloat16, enabled=asked.dtype == "bfloat16"):
            states = net.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)
        # Each chunk's gradient is worked out at once, so that only one chunk of logits exists at a time.
        leaf, labels = states.detach().requires_grad_(), ids[:, 1:].flatten()
        for at in range(0, len(leaf), chunk):
            (loss_of(leaf[at : at + chunk], labels[at : at + chunk]) / len(leaf)).backward()
        states.backward(leaf.grad)
        torch.nn.utils.clip_grad_norm_(blocks.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if asked.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - began)
        spent.append(time.process_time())
    learns, tokens = sum(p.numel() for p in blocks.parameters()), asked.steps * asked.sequences * asked.length
    speed = tokens / sum(seconds[2:])
    cost = {"tokens_per_second": speed, "per_cpu": tokens / (spent[-1] - spent[1]), "memory": memory(asked.device)}
    return cost | {"trainable": learns} | mfu(asked, speed)


def peft(asked: Any) -> dict[str, float]:
    """LoRA under the Hugging Face Trainer."""
    from peft import LoraConfig, get_peft_model
    from torch.utils.data import Dataset
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    net: Any = AutoModelForCausalLM.from_pretrained(base_of(asked), dtype=getattr(torch, asked.dtype))
    net = get_peft_model(net, LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))

    class Random(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return asked.sequences * (asked.steps + 2)

        def __getitem__(self, index: int) -> dict[str, Any]:
            ids = torch.randint(0, 49152, (asked.length,), generator=torch.Generator().manual_seed(index))
            return {"input_ids": ids, "labels": ids}

    ends: list[float] = []
    spent: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if asked.device == "cuda":
                torch.cuda.synchronize()
            ends.append(time.monotonic())
            spent.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=asked.sequences, max_steps=asked.steps + 2,
            bf16=asked.dtype == "bfloat16", use_cpu=asked.device == "cpu", report_to=[], save_strategy="no",
            logging_strategy="no", learning_rate=1e-3, disable_tqdm=True, optim="adamw_torch_fused",
        )  # fmt: skip
        for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            os.environ.pop(key)
        Trainer(net, arguments, train_dataset=Random(), callbacks=[Clock()]).train()
    learns = sum(p.numel() for p in net.parameters() if p.requires_grad)
    tokens = asked.steps * asked.sequences * asked.length
    speed = tokens / (ends[-1] - ends[1])
    cost = {"tokens_per_second": speed, "per_cpu": tokens / (spent[-1] - spent[1]), "memory": memory(asked.device)}
    return cost | {"trainable": learns} | mfu(asked, speed)
