"""Tokens/s and peak memory of training SmolLM2-135M, beside two peers, in one run.

    langext fetch quickstart
    python benchmarks/training_speed.py

All train on 4 x 512 tokens in bf16 a step with the base frozen, each in a process of its own, in turns, `--rounds` times; the
medians count. The peers get the settings of malloc that langext starts its processes with. Peers:

bare    a hand-written PyTorch loop of the same neutral residues: base in bf16, float32 weights of what learns under autocast,
        loss in chunks of tokens, fused AdamW. No DeepSpeed, no packing, no penalty, no data pipeline: random tokens.
peft    LoRA of rank 87 on all linear maps (26.6 M parameters, as many) by PEFT under the Hugging Face Trainer.
langext the training loop of the train stage, with packed documents, their mask, the penalty, and the log; without evaluations
        and checkpoints, which the peers do not make.
compiled  the same with `runtime: {compile: true}`.

`--two` adds langext on two processes against one, one thread each. With a GPU, `--device cuda --sequences 16 --length 2048`
runs it there with MFU, and `--model 1b` takes a randomly initialised Llama of 1.2 B parameters instead.
"""

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from langext.pipeline.launcher import MALLOC

ROOT = Path(__file__).parent.parent
RANK = 87
BIG = {
    "vocab_size": 49152, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 8192, "rope_theta": 500000.0, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="measured steps of each turn; two more come before them")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", choices=["135m", "1b"], default="135m")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--only", nargs="*", choices=[*RUNNERS], default=["langext", "compiled", "bare", "peft"])
    parser.add_argument("--two", action="store_true", help="two processes against one as well")
    parser.add_argument("--profile", action="store_true", help="where the time of one step of langext goes")
    parser.add_argument("--one", choices=[*RUNNERS, "profile"], help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print("RESULT " + json.dumps((RUNNERS | {"profile": profile})[asked.one](asked)), flush=True)
        return
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a machine with an NVIDIA GPU and a driver that torch can use; there is none here")
    with tempfile.TemporaryDirectory(prefix="langext-bench-") as folder:
        asked.run = prepare(Path(folder), asked.model)
        if asked.profile:
            print(turn("profile", asked, {})["table"])
            return
        names = [*asked.only, *(["one thread", "two processes"] if asked.two else [])]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(asked.rounds):
            for name in names:
                found[name].append(measure(name, asked))
                print(f"  {name}: {found[name][-1]['tokens_per_second']:.0f} tokens/s", flush=True)
        show(found)


def show(found: dict[str, list[dict[str, float]]]) -> None:
    """Medians, and ratios to langext."""
    median = {n: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for n, rows in found.items()}
    print("\n| | learns | tokens/s (all rounds) | peak memory |\n| --- | --- | --- | --- |")
    for name, row in median.items():
        each = ", ".join(f"{r['tokens_per_second']:.0f}" for r in found[name])
        print(
            f"| {name} | {row['trainable'] / 1e6:.1f} M | {row['tokens_per_second']:.0f} ({each}) "
            f"| {row['memory'] / 2**30:.2f} GiB |" + (f" MFU {row['mfu']:.1%}" if "mfu" in row else "")
        )
    for ours, theirs in (
        ("langext", "bare"),
        ("langext", "peft"),
        ("compiled", "bare"),
        ("compiled", "peft"),
        ("two processes", "langext"),
        ("two processes", "one thread"),
    ):
        if ours in median and theirs in median:
            a, b = median[ours], median[theirs]
            print(
                f"{ours} / {theirs}: {a['tokens_per_second'] / b['tokens_per_second']:.2f} x the tokens/s, "
                f"{a['memory'] / b['memory']:.2f} x the memory of a process"
            )


def measure(name: str, asked: Any) -> dict[str, float]:
    """One turn. Two processes share the batch; their memory is that of the larger."""
    if name == "two processes":
        return turn("langext", asked, {"OMP_NUM_THREADS": "1"}, 2)
    return turn("langext" if name == "one thread" else name, asked, {"OMP_NUM_THREADS": "1"} if name == "one thread" else {})


def turn(name: str, asked: Any, env: dict[str, str], processes: int = 1) -> Any:
    command = [sys.executable, __file__, "--one", name, "--run", str(asked.run)]
    command += ["--steps", str(asked.steps), "--device", asked.device]
    command += ["--sequences", str(asked.sequences), "--length", str(asked.length)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = os.environ | MALLOC | env | {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if asked.device == "cpu":
        shared |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    running = []
    for rank in range(processes):
        own = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        running.append(subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    printed = [process.communicate() for process in running]
    for process, (_, errors) in zip(running, printed, strict=True):
        if process.returncode:
            sys.exit(f"{name} failed:\n{errors[-3000:]}")
    results = [json.loads(line[7:]) for out, _ in printed for line in out.splitlines() if line.startswith("RESULT ")]
    return max(results, key=lambda result: result.get("memory", 0))


def prepare(folder: Path, model: str) -> Path:
    """Filter and extend as the pipeline for neutral residues does; returns the run folder."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    pipeline = yaml.load(ROOT / "pipelines" / "quickstart.yaml")
    pipeline["stages"] = [stage for stage in pipeline["stages"] if stage["uses"] in ("filter", "extend")]
    if model == "1b":
        pipeline["base_model"] = str(random_base(folder / "1b"))
    yaml.dump(pipeline, folder / "speed.yaml")
    command = [sys.executable, "-m", "langext.cli", "run", str(folder / "speed.yaml"), "--out", str(folder / "run")]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return folder / "run"


def random_base(folder: Path) -> Path:
    """A Llama of 1.2 B parameters that has learnt nothing, with the tokenizer of SmolLM2."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from langext.data import assets

    source = assets.resolve("asset:smollm2-135m")
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM(LlamaConfig(**BIG)).to(torch.bfloat16).save_pretrained(folder)
    return folder


def memory(device: str) -> int:

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def langext(asked: Any, compiled: bool = False) -> dict[str, float]:
    """The train stage itself; its log has the times."""
    from langext.artifacts import METRICS, Corpus, Model, read_metrics
    from langext.context import Context
    from langext.stages.train import Train
    from langext.training import loop
    from langext.training.selection import Evaluation
    from langext.training.watch import Watch

    out = asked.run / f"train-{os.getpid()}" if os.environ["WORLD_SIZE"] == "1" else asked.run / "train-two"
    out.mkdir(exist_ok=True)
    world = int(os.environ["WORLD_SIZE"])
    steps = asked.steps + 2
    stage = Train.model_validate({
        "uses": "train", "steps": steps, "sequence_length": asked.length, "batch_sequences": asked.sequences, "lr": 1e-3,
        "log_every": 1, "eval_every": 10**6, "eval_bytes": 1000, "save_every": 10**6,
        "runtime": {
            "deepspeed": "cpu" if asked.device == "cpu" else "one_gpu",
            "micro_batch": asked.sequences // world, "cpu_processes": world, "gpus": world if asked.device == "cuda" else 0,
            "compile": compiled,
        },
    })  # fmt: skip
    placed: dict[str, Any] = {"rank": int(os.environ["RANK"]), "world_size": world, "tokens": asked.run / "tokens"}
    ctx = Context(out, 17, "fra_Latn", ("eng_Latn",), **placed)
    find = lambda name: next(asked.run.glob(f"[0-9][0-9]-{name}"))  # noqa: E731
    peak: list[int] = []
    model, corpus = Model(find("extend")), Corpus(find("filter"))
    stage.prepare(ctx, model=model, corpus=corpus)

    def measure(_: Watch) -> Evaluation:
        """No evaluation: only the memory that training holds."""
        peak.append(memory(asked.device))
        return Evaluation(sets={}, weights={})

    Watch.measure = measure
    loop.train(stage, ctx, model, corpus)
    rows = [row for row in read_metrics(out / METRICS) if row["kind"] == "train"]
    seconds = (rows[-1]["time"] - rows[1]["time"]) if rows else 1.0
    speed = asked.steps * asked.sequences * asked.length / seconds
    return {"tokens_per_second": speed, "memory": peak[-1], "trainable": trainable(asked)} | mfu(asked, speed)


def mfu(asked: Any, speed: float) -> dict[str, float]:
    """Share of the GPU's bf16 peak; {} where that is not known."""
    from transformers import AutoConfig

    from langext.training import flops

    peak = flops.peak(torch.cuda.get_device_name()) if asked.device == "cuda" else None
    if peak is None:
        return {}
    base = json.loads((next(asked.run.glob("[0-9][0-9]-extend")) / "manifest.json").read_text())["summary"]["base_parameters"]
    learns = trainable(asked)
    cost = flops.per_token(base + learns, learns, AutoConfig.from_pretrained(base_of(asked)), asked.length)
    return {"mfu": speed * cost / peak}


def base_of(asked: Any) -> Path:
    return Path(json.loads((asked.run / "base" / "manifest.json").read_text())["folder"])


def trainable(asked: Any) -> int:
    manifest = json.loads((next(asked.run.glob("[0-9][0-9]-extend")) / "manifest.json").read_text())
    return manifest["summary"]["trainable_parameters"]


def bare(asked: Any) -> dict[str, float]:
    """The peer that anybody who knows PyTorch could write for this one job."""
    from torch import nn
    from torch.nn import functional as F
    from transformers import AutoModelForCausalLM

    device = torch.device(asked.device)
    hidden = trainable(asked)
    net: Any = AutoModelForCausalLM.from_pretrained(base_of(asked), dtype=torch.bfloat16).to(device)
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

    def loss_of(x_CD: Any, labels_C: Any) -> Any:
        return F.cross_entropy((x_CD @ head.T).float(), labels_C, reduction="sum")

    for _ in range(asked.steps + 2):
        ids = torch.randint(0, 49152, (asked.sequences, asked.length + 1), generator=generator).to(device)
        began = time.monotonic()
        with torch.autocast(asked.device, torch.bfloat16):
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
    learns = sum(p.numel() for p in blocks.parameters())
    speed = asked.steps * asked.sequences * asked.length / sum(seconds[2:])
    return {"tokens_per_second": speed, "memory": memory(asked.device), "trainable": learns} | mfu(asked, speed)


def peft(asked: Any) -> dict[str, float]:
    """LoRA under the Hugging Face Trainer."""
    from peft import LoraConfig, get_peft_model
    from torch.utils.data import Dataset
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    net: Any = AutoModelForCausalLM.from_pretrained(base_of(asked), dtype=torch.bfloat16)
    net = get_peft_model(net, LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))

    class Random(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return asked.sequences * (asked.steps + 2)

        def __getitem__(self, index: int) -> dict[str, Any]:
            ids = torch.randint(0, 49152, (asked.length,), generator=torch.Generator().manual_seed(index))
            return {"input_ids": ids, "labels": ids}

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if asked.device == "cuda":
                torch.cuda.synchronize()
            ends.append(time.monotonic())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=asked.sequences, max_steps=asked.steps + 2, bf16=True,
            use_cpu=asked.device == "cpu", report_to=[], save_strategy="no", logging_strategy="no", learning_rate=1e-3,
            disable_tqdm=True, optim="adamw_torch_fused",
        )  # fmt: skip
        for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            os.environ.pop(key)
        Trainer(net, arguments, train_dataset=Random(), callbacks=[Clock()]).train()
    learns = sum(p.numel() for p in net.parameters() if p.requires_grad)
    speed = asked.steps * asked.sequences * asked.length / (ends[-1] - ends[1])
    return {"tokens_per_second": speed, "memory": memory(asked.device), "trainable": learns} | mfu(asked, speed)


def profile(asked: Any) -> dict[str, Any]:
    """Operators of a whole training of a few steps, by their own time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if asked.device == "cuda" else [])]
    with record(activities=activities) as found:
        langext(asked)
    return {
        "table": found.key_averages().table(sort_by=f"self_{asked.device}_time_total", row_limit=25, max_name_column_width=60)
    }


RUNNERS = {"langext": langext, "compiled": lambda asked: langext(asked, compiled=True), "bare": bare, "peft": peft}


if __name__ == "__main__":
    main()
