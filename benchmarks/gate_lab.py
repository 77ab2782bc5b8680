"""The tables of docs/recipe.md on a base and texts of your own: what settings of calibrated gates learn, and what they move.

    python benchmarks/gate_lab.py path/to/base --device cuda \\
        --new 'novels=fr/novels*.txt' 'manuals=fr/manuals.jsonl.gz' --original 'book=en/book.txt' 'code=code/*.txt' \\
        --learned 'news=fr/news.jsonl.gz' --kept 'news=en/news.jsonl.gz' 'german=de/*.jsonl.gz'

--new is trained on and calibrates, --original calibrates (and is what is repeated in rows with replay), --learned (the new
language) and --kept (everything else) are only measured. Each is a name and a file pattern: .jsonl.gz with a field `text`, or
.txt, of which every file is a document. The base is a local folder with safetensors. `--only rows closed` makes some tables.

Calibration, blocks, LoRA and measurements are those of langext; the training is a bare PyTorch loop on one device, one setting
after the other, each from the same base with the same text. Printed, and written to tables.md and runs.jsonl in --out: how much
bits per byte fell in the new language and how many gates were open there; for each kept text the mean KL(base || model) in nats
per token, and the share of its tokens whose own gates are all closed. Not here: rows of logistic regression, soft gates that
start calibrated, and learnt gates turned into thresholds.
"""

import argparse
import copy
import glob
import gzip
import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from pydantic import TypeAdapter
from torch.nn import functional as F

from langext.architectures import families
from langext.data import documents
from langext.evaluation import bpb
from langext.evaluation.gate_stats import Observer
from langext.evaluation.kl import BaseKL
from langext.methods import extended, layers, residue
from langext.methods.lora import Lora
from langext.methods.neutral_residues import NeutralResidues
from langext.methods.penalties.base import MicroBatch
from langext.models import calibration, loading
from langext.stages.calibrating import Calibrated

PASSAGE_BYTES = 1500
BYTES_PER_TOKEN = 8
THRESHOLD: dict[str, Any] = {"name": "neutral_residues", "gate": "threshold", "init": "he"}
METHOD = TypeAdapter(NeutralResidues | Lora)


@dataclass(frozen=True)
class Setting:
    """One line of a table. What is not given is as in line B of docs/recipe.md."""

    label: str
    method: dict[str, Any] = field(default_factory=dict)
    """Settings of the method; those of a threshold gate in all layers, with init he, unless it has a name."""
    weight: float = calibration.ORIGINAL_WEIGHT
    closed: float = 0.99
    lr: float = 8e-3
    longer: float = 1.0
    """Steps, as a multiple of --steps."""
    replay: float = 0.0
    """Share of the sequences that are of the original text."""
    fit: int | None = None
    """Original tokens that fit the rows, and half as many new ones; half of --original-tokens when not given."""
    seed: int = 0


def tables(depth: int) -> dict[str, list[Setting]]:
    """Every table of the lab, for a base of so many layers."""
    from_layer = {f"{low} and up": list(range(low, depth)) for low in sorted({2, 4, depth // 4, depth // 2}) if low < depth}
    chosen = from_layer | {"every second": list(range(0, depth, 2))}
    l1 = {"local_loss": "l1"}
    former = {"name": "neutral_residues", "gate": "hard_sigmoid", "init": "lecun", "alpha": 0.1}
    paper = {"name": "neutral_residues", "gate": "relu", "init": "low_variance", "alpha": 0.01}
    rates = (2e-3, 4e-3, 8e-3, 1.6e-2)
    return {
        "rows": [Setting(f"weight of the original {v}", weight=v) for v in (0.1, 0.5, 0.9, 0.99)],
        "closed": [Setting(f"closed {share}", closed=share) for share in (0.999, 0.995, 0.99, 0.98, 0.95, 0.9)],
        "layers": [Setting("all")] + [Setting(name, {"layers": numbers}) for name, numbers in chosen.items()],
        "rates": [Setting(f"{lr:g}, {more:g} x the steps", lr=lr, longer=more) for more in (1, 2.5, 5) for lr in rates],
        "start": [Setting(init, {"init": init}) for init in ("low_variance", "lecun", "he")],
        "replay": [Setting("none"), Setting("10 %", replay=0.1)]
        + [Setting(f"10 %, L1 with alpha {a}", l1 | {"alpha": a}, replay=0.1) for a in (0.1, 1.0)],
        "width": [Setting(f"{share:.0%} of the base", {"extra_params_frac": share}) for share in (0.1, 0.2, 0.4)],
        "tokens": [Setting(f"{n:,} original, {n // 2:,} new", fit=n) for n in (1000, 2000, 4000, 8000, 16000)],
        "seeds": [Setting(f"seed {seed}", seed=seed) for seed in range(3)],
        "lora": [Setting(f"LoRA, {lr:g}", {"name": "lora"}, lr=lr, replay=0.1) for lr in (5e-4, 1e-3, 2e-3, 4e-3)],
        "former": [Setting(f"soft gates that learn, L1, {lr:g}", former, lr=lr, replay=0.1) for lr in (4e-3, 8e-3)]
        + [Setting("the paper's: relu, low_variance, 4e-3", paper, lr=4e-3, replay=0.1)],
    }


class Lab:
    """The base with its texts. Every setting is trained on a copy of it."""

    def __init__(self, asked: argparse.Namespace):
        self.asked = asked
        dtype = torch.bfloat16 if asked.device == "cuda" else torch.float32
        self.base = loading.load_base(asked.base, dtype).to(asked.device).requires_grad_(False)
        self.tokenizer = loading.load_tokenizer(asked.base)
        self.length = min(asked.length, families.positions(self.base.config) or asked.length)
        self.new, self.original = list(read(asked.new).values()), list(read(asked.original).values())
        self.train_new = self.sequences([text for texts in self.new for text in texts])
        self.train_original = self.sequences([text for texts in self.original for text in texts])
        pieces = [self.pieces(self.original, asked.original_tokens), self.pieces(self.new, asked.new_tokens)]
        (self.fit_original, self.fit_new), self.tail = [rows[0::2] for rows in pieces], pieces[0][1::2]
        self.calibrated: dict[tuple[float, int | None], tuple[torch.Tensor, calibration.Scores]] = {}
        self.learned, self.kept = (
            {name: bpb.passages(texts, 1000, asked.bytes) for name, texts in read(named).items()}
            for named in (asked.learned, asked.kept)
        )
        bare = extended.LiveModel(self.base, self.tokenizer)
        self.before = {name: bpb.measure(bare.net, self.tokenizer, texts).per_byte for name, texts in self.learned.items()}
        self.distance = {name: BaseKL(self.base, self.tokenizer, texts) for name, texts in self.kept.items()}

    def sequences(self, texts: list[str]) -> torch.Tensor:
        """(N, length) ids of the texts one after the other, in an order by chance, always the same."""
        ids = [i for row in documents.encode(self.tokenizer, random.Random(0).sample(texts, len(texts))) for i in row]
        if len(ids) < self.length:
            raise SystemExit(f"the texts have less than the {self.length} tokens of one sequence")
        return torch.tensor(ids[: len(ids) // self.length * self.length]).view(-1, self.length)

    def pieces(self, sources: list[list[str]], tokens: int) -> list[list[int]]:
        """Token ids of pieces of text, the same number of tokens from every source."""
        rows = []
        for texts in sources:
            chosen = bpb.passages(texts, PASSAGE_BYTES, tokens * BYTES_PER_TOKEN // len(sources))
            rows += cut(documents.encode(self.tokenizer, chosen), tokens // len(sources), self.length)
        return random.Random(0).sample(rows, len(rows))

    def gates(self, setting: Setting, numbers: list[int]) -> Calibrated:
        """Rows and thresholds for these layers."""
        every = list(range(self.base.config.num_hidden_layers))
        key = setting.weight, setting.fit
        if key not in self.calibrated:
            original = cut(self.fit_original, setting.fit or 10**9, self.length)
            new = cut(self.fit_new, setting.fit // 2 if setting.fit else 10**9, self.length)
            with patch.object(calibration, "ORIGINAL_WEIGHT", setting.weight):
                row_LD = calibration.fit(self.base, every, original, new)
            self.calibrated[key] = row_LD, calibration.score(self.base, every, row_LD, self.tail)
        row_LD, scores = self.calibrated[key]
        return Calibrated(numbers, row_LD[numbers], calibration.thresholds(scores.only(numbers), setting.closed), {})

    def run(self, setting: Setting) -> dict[str, Any]:
        """Train one setting and measure it."""
        given = setting.method if "name" in setting.method else THRESHOLD | setting.method
        if given["name"] == "lora":
            given = {"rank": self.asked.lora_rank} | given
        method = METHOD.validate_python(given)
        torch.manual_seed(setting.seed)
        live = extended.build(copy.deepcopy(self.base), self.tokenizer, method)
        if isinstance(method, NeutralResidues) and method.calibration:
            numbers = layers.chosen(method.layers, live.net.config)
            self.gates(setting, numbers).put(live.net)
        self.train(live, setting)
        return self.measured(live)

    def train(self, live: extended.LiveModel, setting: Setting) -> None:
        """A bare loop: AdamW on float32 copies of what learns, warm-up of 5 steps, then cosine to a tenth."""
        method, learns = live.method, list(live.learning().values())
        assert method is not None
        masters = [p.detach().float().clone().requires_grad_() for p in learns]
        optimizer = torch.optim.AdamW(masters, lr=setting.lr, betas=(0.9, 0.95), weight_decay=0.0)
        steps = round(self.asked.steps * setting.longer)
        ids_NT, original_N = self.mixed(steps * self.asked.sequences, setting)
        for step in range(steps):
            at = slice(step * self.asked.sequences, (step + 1) * self.asked.sequences)
            ids_BT = ids_NT[at].to(self.asked.device)
            original_BT = original_N[at, None].expand(ids_BT.shape).to(self.asked.device)
            logits = live.net(input_ids=ids_BT, use_cache=False).logits[:, :-1].float()
            loss = F.cross_entropy(logits.flatten(0, 1), ids_BT[:, 1:].flatten())
            batch = MicroBatch(original_BT, int(original_BT.sum()), ids_BT.numel(), step / steps)
            for term in method.penalty(live.net, batch).values():
                loss = loss + term
            loss.backward()
            for master, p in zip(masters, learns, strict=True):
                master.grad, p.grad = p.grad.float() if p.grad is not None else None, None
            cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps))
            optimizer.param_groups[0]["lr"] = setting.lr * min(1, (step + 1) / 5) * cosine
            optimizer.step()
            with torch.no_grad():
                for master, p in zip(masters, learns, strict=True):
                    p.copy_(master)

    def mixed(self, count: int, setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
        """(count, length) ids for a training, and (count,) True for those of the original text."""
        dice = torch.Generator().manual_seed(setting.seed)
        original_N = torch.rand(count, generator=dice) < setting.replay
        whole = [torch.randperm(len(self.train_new), generator=dice) for _ in range(-(-count // len(self.train_new)))]
        ids_NT = self.train_new[torch.cat(whole)[:count]]
        ids_NT[original_N] = self.train_original[
            torch.randint(len(self.train_original), (int(original_N.sum()),), generator=dice)
        ]
        return ids_NT, original_N

    @torch.no_grad()
    def measured(self, live: extended.LiveModel) -> dict[str, Any]:
        """Gain and open share of each new text; KL and closed share of each kept one."""
        found: dict[str, Any] = {"learned": {}, "open": {}, "kl": {}, "closed": {}}
        for name, texts in self.learned.items():
            seen = Observer(live)
            after = bpb.measure(live.net, self.tokenizer, texts, observe=seen).per_byte
            found["learned"][name] = 1 - after / self.before[name]
            if shares := seen.figures().get("open"):
                found["open"][name] = sum(shares) / len(residue.stacks(live.net)[-1])  # 0 in layers without a block
        for name, texts in self.kept.items():
            seen = Observer(live)
            bpb.measure(live.net, self.tokenizer, texts, observe=seen)
            found["kl"][name] = self.distance[name].measure(live.net)
            if "open" in seen.figures():
                found["closed"][name] = seen.closed()
        return found


def cut(rows: list[list[int]], tokens: int, length: int) -> list[list[int]]:
    """The first rows that have so many tokens together, each cut at `length`."""
    chosen, used = [], 0
    for row in rows:
        if used >= tokens:
            break
        chosen.append(row[:length])
        used += len(chosen[-1])
    return chosen


def read(named: list[str]) -> dict[str, list[str]]:
    """`name=pattern` -> the documents of the files that match."""
    found = {}
    for entry in named:
        name, _, pattern = entry.partition("=")
        found[name] = [text for path in sorted(glob.glob(pattern, recursive=True)) for text in documents_of(Path(path))]
        if not found[name]:
            raise SystemExit(f"{entry}: no text; expected name=pattern, of files that end in .jsonl.gz or .txt")
    return found


def documents_of(path: Path) -> Iterator[str]:
    """The texts of a .jsonl.gz file, or the text of a .txt file."""
    if path.name.endswith(".jsonl.gz"):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from (json.loads(line)["text"] for line in file)
    elif path.suffix == ".txt":
        yield path.read_text(encoding="utf-8")


def line(label: str, found: dict[str, Any]) -> str:
    """A line of a table."""

    def share(name: str) -> str:
        return f"{found['open'][name]:.0%}" if name in found["open"] else ""

    cells = [f"{gain:.2%} {share(name)}".strip() for name, gain in found["learned"].items()]
    for name, kl in found["kl"].items():
        cells.append(f"{kl:.4f} {found['closed'][name]:.2%}" if name in found["closed"] else f"{kl:.4f}")
    return "| " + " | ".join([label, *cells]) + " |"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="folder of the base model")
    for name in ("new", "original", "learned", "kept"):
        parser.add_argument(f"--{name}", nargs="+", required=True, metavar="NAME=PATTERN")
    parser.add_argument("--only", nargs="+", default=[], choices=[*tables(8)], help="tables to make; all when not given")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--sequences", type=int, default=4, help="sequences in a step")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--original-tokens", type=int, default=40_000)
    parser.add_argument("--new-tokens", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=40_000, help="bytes to measure of each text")
    parser.add_argument("--lora-rank", type=int, default=87, help="87 has as many parameters as the blocks on SmolLM2-135M")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="bf16 on cuda, float32 on a CPU")
    parser.add_argument("--out", type=Path, default=Path("runs/gate-lab"))
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a machine with an NVIDIA GPU and a driver that torch can use; there is none here")
    return asked


def main() -> None:
    """Make the tables."""
    asked = parsed()
    asked.out.mkdir(parents=True, exist_ok=True)
    lab = Lab(asked)
    head = ["", *(f"{n}: learned, gates open" for n in lab.learned), *(f"{n}: KL, tokens closed" for n in lab.kept)]
    out = []
    with (asked.out / "runs.jsonl").open("a", encoding="utf-8") as log:
        for group, settings in tables(lab.base.config.num_hidden_layers).items():
            if asked.only and group not in asked.only:
                continue
            out += [f"\n## {group}\n", "| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
            print("\n".join(out[-3:]), flush=True)
            for setting in settings:
                if (setting.fit or 0) > asked.original_tokens // 2 or (setting.fit or 0) > asked.new_tokens:
                    print(f"left out: {setting.label}: more than half of --original-tokens or --new-tokens", flush=True)
                    continue
                found = lab.run(setting)
                log.write(json.dumps({"table": group, "steps": asked.steps, "setting": asdict(setting), **found}) + "\n")
                log.flush()
                out.append(line(setting.label, found))
                print(out[-1], flush=True)
    (asked.out / "tables.md").write_text("\n".join(out).lstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
