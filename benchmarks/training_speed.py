"""Tokens/s and peak memory of training SmolLM2-135M, beside two peers, in one run.

    langext fetch quickstart
    python benchmarks/training_speed.py

All train on 4 x 512 tokens a step with the base frozen, each in a process of its own, in turns, `--rounds` times; the medians
count. Tokens per second of CPU say more where other programs run beside (`--threads 1`). In bf16, or `--dtype float32` for
machines that compute bf16 slowly. The peers get the settings of malloc that langext starts its processes with. Peers:

bare    a hand-written PyTorch loop of the same neutral residues: base in bf16, float32 weights of what learns under autocast,
        loss in chunks of tokens, fused AdamW. No DeepSpeed, no packing, no penalty, no data pipeline: random tokens.
peft    LoRA of rank 87 on all linear maps (26.6 M parameters, as many) by PEFT under the Hugging Face Trainer.
langext the training loop of the train stage on the recipe of the quickstart, calibrated gates in all layers: with packed
        documents, their mask, and the log; without evaluations and checkpoints, which the peers do not make.
compiled  the same with `runtime: {compile: true}`.
upper   blocks twice as wide in the upper half of the layers alone, open on 95 % of the training tokens.
sweep   the same in a sweep: the states that enter the first block were kept by an earlier run.

`--two` adds langext on two processes against one, one thread each. With a GPU, `--device cuda --sequences 16 --length 2048`
runs it there with MFU, and `--model 1b` takes a randomly initialised Llama of 1.2 B parameters instead.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import calibrated
import torch
from peers import bare, memory, mfu, peft, trainable

from langext.pipeline.launcher import MALLOC

ROOT = Path(__file__).parent.parent
OPEN = 0.95
"""Share of the training tokens that the gates of `upper` and `sweep` are open for."""
BIG = {
    "vocab_size": 49152, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 8192, "rope_theta": 500000.0, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="measured steps of each turn; two more come before them")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, help="threads of each process; as many as there are cores when not given")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", choices=["135m", "1b"], default="135m")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument(
        "--only", nargs="*", choices=[*RUNNERS], default=["langext", "compiled", "upper", "sweep", "bare", "peft"]
    )
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
        asked.run = prepare(Path(folder), asked)
        if asked.profile:
            print(turn("profile", asked, {})["table"])
            return
        names = [*asked.only, *(["one thread", "two processes"] if asked.two else [])]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(asked.rounds):
            for name in names:
                found[name].append(measure(name, asked))
                print(
                    "  {}: {tokens_per_second:.0f} tokens/s, {per_cpu:.0f} a CPU second".format(name, **found[name][-1]),
                    flush=True,
                )
        show(found)


def show(found: dict[str, list[dict[str, float]]]) -> None:
    """Medians, and ratios to langext."""
    median = {n: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for n, rows in found.items()}
    print("\n| | learns | tokens/s (all rounds) | tokens per CPU second (all rounds) | peak memory |\n| --- |" + 4 * " --- |")
    for name, row in median.items():
        each = {key: ", ".join(f"{r[key]:.0f}" for r in found[name]) for key in ("tokens_per_second", "per_cpu")}
        print(
            f"| {name} | {row['trainable'] / 1e6:.1f} M | {row['tokens_per_second']:.0f} ({each['tokens_per_second']}) "
            f"| {row['per_cpu']:.0f} ({each['per_cpu']}) | {row['memory'] / 2**30:.2f} GiB |"
            + (f" MFU {row['mfu']:.1%}" if "mfu" in row else "")
        )
    for ours, theirs in (
        ("langext", "bare"),
        ("langext", "peft"),
        ("compiled", "bare"),
        ("compiled", "peft"),
        ("upper", "bare"),
        ("upper", "peft"),
        ("sweep", "bare"),
        ("sweep", "peft"),
        ("sweep", "upper"),
        ("two processes", "langext"),
        ("two processes", "one thread"),
    ):
        if ours in median and theirs in median:
            a, b = median[ours], median[theirs]
            print(
                f"{ours} / {theirs}: {a['tokens_per_second'] / b['tokens_per_second']:.2f} x the tokens/s, "
                f"{a['per_cpu'] / b['per_cpu']:.2f} x the tokens per CPU second, "
                f"{a['memory'] / b['memory']:.2f} x the memory of a process"
            )


def measure(name: str, asked: Any) -> dict[str, float]:
    """One turn. Two processes share the batch; their memory is that of the larger."""
    if name == "sweep" and not any(asked.run.glob("tokens/*/prefix-*")):  # the first run keeps the states; it is not measured
        turn(name, asked, {})
    if name == "two processes":
        return turn("langext", asked, {"OMP_NUM_THREADS": "1"}, 2)
    return turn("langext" if name == "one thread" else name, asked, {"OMP_NUM_THREADS": "1"} if name == "one thread" else {})


def turn(name: str, asked: Any, env: dict[str, str], processes: int = 1) -> Any:
    command = [sys.executable, __file__, "--one", name, "--run", str(asked.run)]
    command += ["--steps", str(asked.steps), "--device", asked.device, "--dtype", asked.dtype]
    command += ["--sequences", str(asked.sequences), "--length", str(asked.length)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    if asked.threads:
        env = {"OMP_NUM_THREADS": str(asked.threads)} | env
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


def prepare(folder: Path, asked: Any) -> Path:
    """Filter and extend as the pipeline for neutral residues does; returns the run folder."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    pipeline = yaml.load(ROOT / "pipelines" / "quickstart.yaml")
    pipeline["stages"] = [stage for stage in pipeline["stages"] if stage["uses"] in ("filter", "extend")]
    if asked.device == "cuda":
        pipeline["stages"][-1]["runtime"] = {"gpus": 1}
    if asked.model == "1b":
        pipeline["base_model"] = str(random_base(folder / "1b"))
    for name, method in {
        "run": pipeline["stages"][-1]["method"],
        "upper": calibrated.method(16 if asked.model == "1b" else 30),
    }.items():
        pipeline["stages"][-1]["method"] = method
        yaml.dump(pipeline, folder / f"{name}.yaml")
        command = [sys.executable, "-m", "langext.cli", "run", str(folder / f"{name}.yaml"), "--out", str(folder / name)]
        command += ["--reuse", str(folder / "run")] if name == "upper" else []
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    from langext.models import loading

    upper = folder / "upper"
    tokenizer = loading.load_tokenizer(loading.read_record(loading.Model(upper / "base")).base)
    ids = calibrated.tokens_of(upper, "fra_Latn", (4, 512), tokenizer)
    calibrated.calibrate(next(upper.glob("[0-9][0-9]-extend")), ids, OPEN)
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


def langext(asked: Any, kind: str = "langext") -> dict[str, float]:
    """The train stage itself; its log has the times. `kind` is the name of a runner."""
    from langext.artifacts import METRICS, Corpus, Model, read_metrics
    from langext.context import Context
    from langext.stages.train import Train
    from langext.training import loop
    from langext.training.metrics import Log
    from langext.training.selection import Evaluation
    from langext.training.watch import Watch

    run = asked.run.with_name("upper") if kind in ("upper", "sweep") else asked.run
    out = run / (f"train-{os.getpid()}-{time.monotonic_ns()}" if os.environ["WORLD_SIZE"] == "1" else "train-two")
    out.mkdir(exist_ok=True)
    world = int(os.environ["WORLD_SIZE"])
    steps = asked.steps + 2
    stage = Train.model_validate({
        "uses": "train", "steps": steps, "sequence_length": asked.length, "batch_sequences": asked.sequences, "lr": 1e-3,
        "log_every": 1, "eval_every": 10**6, "eval_bytes": 1000, "save_every": 10**6,
        "original_frac": 0.0,
        "precision": "fp32" if asked.dtype == "float32" else "bf16",
        "runtime": {
            "deepspeed": "cpu" if asked.device == "cpu" else "one_gpu",
            "micro_batch": asked.sequences // world, "cpu_processes": world, "gpus": world if asked.device == "cuda" else 0,
            "compile": kind == "compiled", "prefix_cache": "auto" if kind == "sweep" else "off",
        },
    })  # fmt: skip
    placed: dict[str, Any] = {
        "rank": int(os.environ["RANK"]),
        "world_size": world,
        "tokens": asked.run / "tokens",
    }  # not the folder of `upper`: as in a sweep
    ctx = Context(out, 17, "fra_Latn", ("eng_Latn",), **placed)
    find = lambda name: next(run.glob(f"[0-9][0-9]-{name}"))  # noqa: E731
    peak: list[int] = []
    spent: list[float] = []
    model, corpus = Model(find("extend")), Corpus(find("filter"))
    stage.prepare(ctx, model=model, corpus=corpus)

    def measure(_: Watch) -> Evaluation:
        """No evaluation: only the memory that training holds."""
        peak.append(memory(asked.device))
        return Evaluation(sets={}, weights={})

    def training(log: Log, *given: Any, **more: Any) -> None:
        """The line of a step, and the CPU seconds up to it."""
        spent.append(time.process_time())
        write(log, *given, **more)

    Watch.measure, write, Log.training = measure, Log.training, training
    loop.train(stage, ctx, model, corpus)
    Log.training = write
    rows = [row for row in read_metrics(out / METRICS) if row["kind"] == "train"]
    tokens = asked.steps * asked.sequences * asked.length
    speed = tokens / (rows[-1]["time"] - rows[1]["time"]) if rows else 0.0
    cost = {"tokens_per_second": speed, "per_cpu": tokens / (spent[-1] - spent[1]), "memory": peak[-1]}
    return cost | {"trainable": trainable(run)} | mfu(asked, speed)


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


RUNNERS = {
    "langext": langext, "compiled": lambda asked: langext(asked, "compiled"), "upper": lambda asked: langext(asked, "upper"),
    "sweep": lambda asked: langext(asked, "sweep"), "bare": bare, "peft": peft,
}  # fmt: skip


if __name__ == "__main__":
    main()
