"""Every kind of export in every program that serves it, compared with langext's own forward in float32: one table.

    python benchmarks/serving.py --runners transformers4,transformers5,vllm,llamacpp,mlx

Pico models of every family with every method, their new weights far from where they started, and with `--bases` real ones. A
kind of export is what the table of formats says of it: one method stands for all that become the same. Cells: the largest
difference of a log-probability in nats, and how many tokens have the same most likely next one; or why there is no figure.
Programs are the rows of langext.exports.runners; for each an environment is made with pip and kept (vLLM needs 3.4 GB).
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from cases import CASES, calibrate, label, method, stir
from toy import FAMILIES, make_base, make_tokenizer

from langext.errors import ConfigError, RunFailed
from langext.exports import checkpoint, runners, verify
from langext.exports.targets import TARGETS, architecture
from langext.methods import extended, gates
from langext.models import loading

TEXTS = ["The small cat sleeps in the house with a dog. 123 " * 4, "Le petit chat dort déjà dans la forêt. " * 4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runners", default=",".join(runners.RUNNERS), help="comma list; name=PYTHON says where one is")
    parser.add_argument("--environments", type=Path, help="folder of environments. Default: that of `langext fetch`")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=FAMILIES, help="pico models")
    parser.add_argument("--bases", nargs="*", default=[], type=Path, help="folders of real base models")
    parser.add_argument("--only", default="", help="only exports whose method or architecture has this in its name")
    asked = parser.parse_args()
    programs = interpreters(asked.runners, asked.environments)
    with tempfile.TemporaryDirectory(prefix="langext-serving-") as scratch:
        made: list[tuple[str, str, str, runners.Export]] = []
        for base, stirred in [*pico(asked.families, Path(scratch)), *((base, 0.02) for base in asked.bases)]:
            for case, form, words in kinds(base):
                if asked.only in f"{label(case)} {form} {words}":
                    place = Path(scratch) / str(len(made))
                    made.append((base.name, label(case), *export(base, case, form, place, stirred)))
        table(["base", "method", "becomes"], made, programs)


def interpreters(asked: str, environments: Path | None) -> dict[str, str]:
    """The interpreter of each program that is asked for; environments that are not there are made."""
    folder = environments or runners.environments()
    for name in asked.split(","):
        if name in runners.RUNNERS:
            runners.make(name, folder)
    return runners.interpreters(asked, folder)


def table(heads: list[str], made: Sequence[tuple[Any, ...]], programs: dict[str, str]) -> None:
    """Print what every program says to every export: rows are what an export is called, and the export."""
    columns = [column(name, python, made) for name, python in programs.items()]
    print("|", " | ".join([*heads, *(runners.version(*pair) for pair in programs.items())]), "|")
    print("|", " | ".join(["---"] * (len(heads) + len(programs))), "|")
    for (*named, _), *cells in zip(made, *columns, strict=True):
        print("|", " | ".join([*named, *cells]), "|")


def pico(families: list[str], root: Path) -> Iterator[tuple[Path, float]]:
    """Folders of pico models, and the size of the change that stands for training."""
    for family in families:
        tokenizer, more = make_tokenizer(), {"num_attention_heads": 2, "num_key_value_heads": 1}
        if "head_dim" in FAMILIES[family]:
            more = {"head_dim": 32}
        if "query_pre_attn_scalar" in FAMILIES[family]:
            more["query_pre_attn_scalar"] = 32
        # Heads are 32 wide: vLLM's attention on CPUs takes no narrower ones.
        make_base(family, len(tokenizer), **more).save_pretrained(root / family)
        tokenizer.save_pretrained(root / family)
        yield root / family, 0.1


def kinds(base: Path) -> list[tuple[dict[str, Any], str, str]]:
    """What exports of this base can be: the first method for each, the format, and the architecture in words."""
    config, found = loading.load_config(base), {}
    for case in CASES:
        for form, target in TARGETS.items():
            one = method(case)
            if target.write is not checkpoint.write or target.obstacle(config, [one], None):
                continue
            words = architecture(config, [one], form)
            # A stock architecture holds different gates in different ways; the code that travels along has them all.
            gate = one.block_gate if gates.has(one.block_gate) and not target.own_code else None
            found.setdefault((words, gate), (case, form, words))
    return sorted(found.values(), key=lambda kind: TARGETS[kind[1]].own_code)


def export(base: Path, case: Any, form: str, out: Path, stirred: float) -> tuple[str, runners.Export]:
    """Write a checkpoint; return its class, and what langext computes."""
    torch.manual_seed(3)
    net = loading.load_base(base, torch.float32)
    live = calibrate(extended.build(net, loading.load_tokenizer(base), method(case)))
    stir(live, stirred)
    texts = verify.decided(live, TEXTS)
    target, merged = TARGETS[form], case["name"] in ("lora", "selective_lora")
    stock = live.methods[-1].fold(net) if target.folds else None
    # Merged weights are rounded when they are written; all others are numbers that bf16 has.
    expected = verify.expect(
        stock.model(whole=True, rounded=True) if stock and merged else net.eval(), live.tokenizer, texts, out / "logits"
    )
    folder = out / "checkpoint"
    folder.mkdir()
    checkpoint.save(live, stock, folder)
    name = type(stock.shell()).__name__.removesuffix("ForCausalLM") if stock else "remote code"
    return name, runners.Export(folder, expected, target.own_code)


def column(name: str, python: str, made: Sequence[tuple[Any, ...]]) -> list[str]:
    """What a program says to each export."""
    cells = []
    # Several in one process, because starting vLLM takes longer than all the rest.
    for _, group in itertools.groupby(made, lambda one: (one[0], one[-1].own_code)):
        said = told(name, python, [export for *_, export in group])
        print(f"{name}: {'; '.join(said)}", file=sys.stderr, flush=True)
        cells += said
    return cells


def told(name: str, python: str, exports: list[runners.Export]) -> list[str]:
    """What a program says to exports in one process, or to each in its own where that fails."""
    try:
        runners.refuse([name], "remote" if exports[0].own_code else "native", exports[0].own_code, "")
        results = runners.compare(name, python, exports)
    except (ConfigError, RunFailed) as error:
        if len(exports) > 1:
            return [cell for export in exports for cell in told(name, python, [export])]
        return [str(error).removeprefix("--verify ").removeprefix(f"{name}: ")]
    return [f"{result.max_abs_logprob_difference:.1e}, {result.top1_agreement:.0%}" for result in results]


if __name__ == "__main__":
    main()
