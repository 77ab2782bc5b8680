"""The experiments behind docs/results.md: their texts, and every run as a langext pipeline. Not a program.

`small` is the protocol of the paper on a model of 5 or 8 M parameters that pretrain.py has taught English; `ablations` changes
one setting of neutral residues at a time there; `vocabulary` gives it tokens for French too; `chain` teaches it three languages
one after another, and `merged` merges two of its runs; `real` is SmolLM2-135M, and `german` and `swahili` are its recipe,
untouched.
"""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

ENGLISH = ("cia-factbook", "debian-manuals", "canada-acts", "plainlanguage")
"""English text that is replayed, and that gates are calibrated on."""
MORE_ENGLISH = ("anarchist-faq", "cakephp-docs", "debian-manpages", "fortunes", "ud-ewt-sources")
"""Further English text that gates can be calibrated on; no news, which is to be unseen."""
UNSEEN_ENGLISH = ("eltec-novels", "bbc-news", "python-docs", "rust-book", "debian-descriptions")
"""English that only measures: kinds of text that no run is trained or calibrated on."""
TRAINED = {
    "fra_Latn": ("fr", {"orangesum-news": 1200, "debian-manuals": 900, "canada-acts": 40, "eltec-novels": 6}),
    "deu_Latn": ("de", {"10kgnad-news": 1000, "debian-manuals": 900, "bundesgesetze": 80, "eltec-novels": 5}),
    "swh_Latn": ("sw", {"lafand-news": 1693, "masakhanews": 565, "new-testament": 251}),
}
"""Language -> the start of its files, and its kinds of text with the number of documents that are read."""
UNSEEN = {
    "fra_Latn": ("masakhanews", "python-docs", "code-civil", "putaindecode-blog"),
    "deu_Latn": ("debian-descriptions", "php-manual", "debian-manpages", "fortunes"),
    "swh_Latn": ("ted-talks",),
}
"""Language -> kinds of text that only measure."""
TASKS = {
    "eng_Latn": ("en.facts-mpararel", "en.scala-pairs", "en.arc_easy", "en.blimp", "en.copa"),
    "fra_Latn": ("fr.facts-mpararel", "fr.scala-pairs", "fr.orangesum-title", "fr.masakhanews-topic"),
    "deu_Latn": ("de.facts-mpararel", "de.scala-pairs"),
    "swh_Latn": ("sw.xcopa", "sw.masakhanews-topic"),
}
CAPS = {"cia-factbook": 100, "debian-manuals": 500, "canada-acts": 20}
KL_BYTES = 40_000
"""Text of each kind of English on which the KL of small models is measured."""
EXPORTED = "06-export/checkpoint"
"""Of a run of `chain`."""
CALIBRATED = {"name": "neutral_residues", "gate": "threshold"}
STACKED = CALIBRATED | {"calibrate": {"closed": 0.95, "min_open": 0.2}}
"""For further languages: what so small a model computes tells German from French much worse than French from English."""
PAPER = {"name": "neutral_residues", "init": "low_variance", "alpha": 0.01}
FULL = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
BLOCKS = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]


Run = dict[str, Any]
"""A pipeline."""
Source = dict[str, Any]


def sources(data: Path, language: str) -> list[Source]:
    """What every run of a language reads."""
    return [*trained(data, language), *replayed(data), *unseen(data, "eng_Latn"), *unseen(data, language)]


def trained(data: Path, language: str) -> list[Source]:
    """Text of the new language."""
    start, kinds = TRAINED[language]
    files = {kind: f"{data}/text/{start}.{kind}.jsonl.gz" for kind in kinds}
    return [{"language": language, "path": files[kind], "name": kind, "max_documents": most} for kind, most in kinds.items()]


def replayed(data: Path, kinds: tuple[str, ...] = ENGLISH) -> list[Source]:
    """English text."""
    most = {kind: {"max_documents": CAPS[kind]} if kind in CAPS else {} for kind in kinds}
    files = {kind: f"{data}/text/en.{kind}.jsonl.gz" for kind in kinds}
    return [{"language": "eng_Latn", "path": files[kind], "name": kind, **most[kind]} for kind in kinds]


def unseen(data: Path, language: str, **more: bool) -> list[Source]:
    """Text that only measures."""
    start, kinds = ("en", UNSEEN_ENGLISH) if language == "eng_Latn" else (TRAINED[language][0], UNSEEN[language])
    files = {kind: f"{data}/valid/{start}.{kind}.jsonl.gz" for kind in kinds}
    more = more or {"heldout_only": True}
    return [{"language": language, "path": files[kind], "name": f"unseen-{kind}", **more} for kind in kinds]


def small(data: Path, base: str) -> Iterator[Run]:
    """Every method at four learning rates or more, with a fifth of the parameters of a base of 8 M where it adds any."""
    methods: dict[str, tuple[dict[str, Any], list[float], dict[str, Any]]] = {
        "full": ({"name": "full"}, FULL, {}),
        "full_ldifs": ({"name": "full"}, FULL, {"penalties": [{"name": "ldifs", "weight": 0.2}]}),
        "full_lines": ({"name": "full"}, FULL, {}),
        "lora": ({"name": "lora", "rank": 43}, [1e-3, 3e-3, 1e-2, 3e-2], {}),
        "selective_lora": ({"name": "selective_lora", "rank": 43, "s_lr": 2e-3}, [1e-3, 3e-3, 1e-2, 3e-2], {}),
        "adapter": ({"name": "adapter", "extra_params_frac": 0.2}, BLOCKS, {}),
        "grow": ({"name": "grow", "k": 2, "layers": {"top": 3}}, [3e-4, 1e-3, 3e-3, 1e-2, 3e-2], {}),
        "expansion_blocks": ({"name": "expansion_blocks", "every": 4}, [3e-4, 1e-3, 3e-3, 1e-2, 3e-2], {}),
        "neutral_residues": (CALIBRATED, BLOCKS, {"original_frac": 0.0}),
    }
    for gate in ("relu", "elu", "sigmoid", "hard_sigmoid", "none"):
        methods[f"neutral_residues_{gate}"] = (PAPER | {"gate": gate}, BLOCKS, {})
    for name, (method, rates, more) in methods.items():
        for lr in rates:
            yield _small(f"{name}-{lr:g}", data, base, method, {"lr": lr, **more}, lines=name == "full_lines")


def ablations(data: Path, base: str) -> Iterator[Run]:
    """One setting at a time, from neutral_residues-0.008 of `small` and, of the paper's gates, neutral_residues_relu-0.004."""
    plain = {"lr": 8e-3, "original_frac": 0.0}
    for closed in (0.9, 0.95, 0.98, 0.99, 0.999):
        yield _small(f"closed-{closed:g}", data, base, CALIBRATED | {"calibrate": {"closed": closed}}, plain)
    yield _more_english(_small("kinds-9", data, base, CALIBRATED, plain), data)
    for closed in (0.95, 0.98, 0.995, 0.999):  # what was better, one setting at a time, together
        method = CALIBRATED | {"layers": {"top": 4}, "calibrate": {"closed": closed}}
        yield _more_english(_small(f"together-{closed:g}", data, base, method, plain | {"lr": 1.6e-2}), data)
    for init in ("lecun", "low_variance"):
        yield _small(f"init-{init}", data, base, CALIBRATED | {"init": init}, plain)
    for frac in (0.05, 0.1, 0.4):
        yield _small(f"extra-{frac:g}", data, base, CALIBRATED | {"extra_params_frac": frac}, plain)
    for name, part in {"top-4": {"top": 4}, "top-6": {"top": 6}, "bottom-4": [0, 1, 2, 3], "odd": [1, 3, 5, 7]}.items():
        yield _small(f"layers-{name}", data, base, CALIBRATED | {"layers": part}, plain)
    for p in (0.01, 0.1, 0.5):
        yield _small(f"p-{p:g}", data, base, CALIBRATED, {"lr": 8e-3, "original_frac": p})
    for p in (0.0, 0.01, 0.5):
        loss = {} if p else {"local_loss": "none"}
        yield _small(f"paper-p-{p:g}", data, base, PAPER | {"gate": "relu", **loss}, {"lr": 4e-3, "original_frac": p})
    for alpha in (0.0, 0.1, 1.0):
        yield _small(f"paper-alpha-{alpha:g}", data, base, PAPER | {"gate": "relu", "alpha": alpha}, {"lr": 4e-3})
    for lr in (4e-3, 1.6e-2):
        yield _small(f"paper-init-he-{lr:g}", data, base, PAPER | {"gate": "relu", "init": "he"}, {"lr": lr})
        yield _small(f"adapter-he-{lr:g}", data, base, {"name": "adapter", "extra_params_frac": 0.2, "init": "he"}, {"lr": lr})
    for p in (0.0, 0.3, 0.5):
        yield _small(f"full-p-{p:g}", data, base, {"name": "full"}, {"lr": 3e-4, "original_frac": p})
    yield _small(
        "learns-hard_sigmoid-he", data, base, PAPER | {"gate": "hard_sigmoid", "init": "he", "alpha": 0.1}, {"lr": 4e-3}
    )


def vocabulary(data: Path, base: str) -> Iterator[Run]:
    """New tokens of French before the training: for full fine-tuning, and for gates, from two starts, with replay, and more."""
    full, gated = ({"name": "full"}, 3e-3), (CALIBRATED, 8e-3)
    for (method, lr), tokens, output, p in (
        (full, 1000, "unchanged", 0.1), (full, 4000, "unchanged", 0.1), (gated, 1000, "unchanged", 0.0),
        (gated, 1000, "unchanged", 0.1), (gated, 1000, "shifted", 0.0), (gated, 1000, "shifted", 0.1),
        (gated, 4000, "shifted", 0.0),
    ):  # fmt: skip
        run = _small(f"{method['name']}-{tokens}-{output}-p-{p:g}", data, base, method, {"lr": lr, "original_frac": p})
        run["stages"].insert(2, {"uses": "extend_tokenizer", "new_tokens": tokens, "output": output})
        yield run


def chain(data: Path, base: str, out: Path) -> list[list[Run]]:
    """French, German and Swahili one after another, by full fine-tuning, with LDIFS, and by neutral residues that are stacked.

    Returns the runs of each step.
    A step begins with what the one before has left in OUT, and measures all three languages. Of full fine-tuning a tenth of the
    text is in English, on which LDIFS acts, and earlier languages are not replayed; neutral residues train on the new language
    alone, and text of the others calibrates their gates.
    """
    ways = {"full": [], "full_ldifs": [{"name": "ldifs", "weight": 0.2}]}
    steps: list[list[Run]] = []
    for number, language in enumerate(TRAINED):
        earlier, later = list(TRAINED)[:number], list(TRAINED)[number + 1 :]
        steps.append([])
        for name in (*ways, "neutral_residues"):
            before = out / f"{name}-{number}"
            if name in ways:
                start, method, more = str(before / EXPORTED), {"name": "full"}, {"lr": 1e-3, "penalties": ways[name]}
            else:
                start, method, more = str(before), STACKED if number else CALIBRATED, {"lr": 8e-3, "original_frac": 0.0}
            run = _small(f"{name}-{number + 1}", data, start if number else base, method, more, language=language)
            run["original_languages"] += earlier
            found = run["stages"][0]["sources"]
            found += [source for other in earlier for source in unseen(data, other)]
            found += [source for other in later for source in unseen(data, other, measure_only=True)]
            if name in ways:
                run["stages"].append({"uses": "export"})
            else:
                found += [source for other in earlier for source in trained(data, other)]
            steps[-1].append(run)
    return steps


def merged(data: Path, base: str, out: Path) -> list[list[Run]]:
    """German learnt by the base alone; then that and the French of `chain` merged, without and with LiNeS."""
    alone = _small("german", data, base, {"name": "full"}, {"lr": 1e-3}, language="deu_Latn")
    sums = []
    for name, lines in (("sum", False), ("sum_lines", True)):
        run = _small(name, data, base, {"name": "full"}, {})
        run["original_languages"].append("deu_Latn")
        run["stages"][0]["sources"] += [*trained(data, "deu_Latn"), *unseen(data, "deu_Latn")]
        models = [str(out.parent / "chain" / "full-1"), str(out / "german")]
        merge = {"uses": "merge", "models": models, "rule": "task_arithmetic", "lines": lines, "eval_bytes": 10_000}
        run["stages"] = [*run["stages"][:2], merge, run["stages"][-1]]
        sums.append(run)
    return [[alone], sums]


def real(data: Path, tasks: Path) -> Iterator[Run]:
    """SmolLM2-135M to French: six methods, three learning rates."""
    for name, method, rates, more in (
        ("full", {"name": "full"}, [3e-5, 1e-4, 3e-4], {}),
        ("lora", {"name": "lora", "rank": 87}, [1e-3, 2e-3, 4e-3], {}),
        ("neutral_residues", CALIBRATED, [2e-3, 4e-3, 8e-3], {"original_frac": 0.0}),
        ("grow", {"name": "grow", "k": 2, "layers": {"top": 10}}, [3e-4, 1e-3, 3e-3], {}),
        ("expansion_blocks", {"name": "expansion_blocks", "every": 4}, [3e-4, 1e-3, 3e-3], {}),
        ("selective_lora", {"name": "selective_lora", "rank": 87, "s_lr": 2e-3}, [1e-3, 2e-3, 4e-3], {}),
    ):
        for lr in rates:
            yield _real(f"{name}-{lr:g}", data, tasks, "fra_Latn", method, {"lr": lr, **more})


def untouched(data: Path, tasks: Path, language: str) -> Iterator[Run]:
    """The recipe in another language as it was for French."""
    yield _real("neutral_residues-0.004", data, tasks, language, CALIBRATED, {"lr": 4e-3, "original_frac": 0.0})


def with_seed(run: Run, seed: int) -> Run:
    """The same run with another seed."""
    return deepcopy(run) | {"seed": seed, "name": f"{run['name']}-seed{seed}"}


def on_gpu(run: Run, micro_batch: int) -> Run:
    """The same run on one GPU."""
    found = deepcopy(run)
    for stage in found["stages"]:
        if stage["uses"] == "train":
            stage["runtime"] = {"gpus": 1, "deepspeed": "one_gpu", "micro_batch": micro_batch}
        elif stage["uses"] != "filter":
            stage["runtime"] = {"gpus": 1}
    return found


def _more_english(run: Run, data: Path) -> Run:
    """The same run with more kinds of English that calibrate its gates. KL is measured on as much text of each kind."""
    run["stages"][0]["sources"] += replayed(data, MORE_ENGLISH)
    for stage in run["stages"]:
        if "kl_bytes" in stage:
            stage["kl_bytes"] += len(MORE_ENGLISH) * KL_BYTES
    return run


def _small(
    name: str, data: Path, base: str, method: dict[str, Any], more: dict[str, Any], *, lines: bool = False,
    language: str = "fra_Latn",
) -> Run:  # fmt: skip
    train = {
        "uses": "train", "steps": 300, "sequence_length": 512, "batch_sequences": 16, "warmup_steps": 20, "original_frac": 0.1,
        "log_every": 20, "eval_every": 100, "eval_bytes": 10_000, "save_every": 300, "keep_checkpoints": 1, **more,
    }  # fmt: skip
    kinds = len(ENGLISH) + len(UNSEEN_ENGLISH)
    measured = {
        "uses": "evaluate", "bpb_bytes": 40_000, "kl_bytes": kinds * KL_BYTES, "continuation_items": 0, "samples": 0,
    }  # fmt: skip
    return _run(name, language, base, data, method, train, measured | {"precision": "fp32"}, lines)


def _real(name: str, data: Path, tasks: Path, language: str, method: dict[str, Any], more: dict[str, Any]) -> Run:
    train = {
        "uses": "train", "steps": 250, "sequence_length": 512, "batch_sequences": 16, "warmup_steps": 20, "original_frac": 0.1,
        "log_every": 10, "eval_every": 50, "eval_bytes": 10_000, "save_every": 250, "keep_checkpoints": 1, **more,
    }  # fmt: skip
    named = {code: [task.replace(".", "_") for task in TASKS[code]] for code in ("eng_Latn", language)}
    measured = {
        "uses": "evaluate", "bpb_bytes": 30_000, "kl_bytes": 135_000, "continuation_items": 0, "samples": 0,
        "tasks": named, "include_path": str(tasks), "limit": 500, "batch_size": 32, "precision": "fp32",
    }  # fmt: skip
    return _run(name, language, "asset:smollm2-135m", data, method, train, measured, False)


def _run(
    name: str, language: str, base: str, data: Path, method: dict[str, Any], train: dict[str, Any], measured: dict[str, Any],
    lines: bool,
) -> Run:  # fmt: skip
    stages = [
        {"uses": "filter", "sources": sources(data, language), "heldout_frac": 0.02},
        {"name": "evaluate_base", "inputs": {"model": "base"}, **measured},
        {"uses": "extend", "method": method},
        train,
        *([{"uses": "rescale", "alpha": "auto", "eval_bytes": 10_000}] if lines else []),
        measured,
    ]
    return {
        "name": name, "language": language, "original_languages": ["eng_Latn"], "base_model": base, "seed": 17,
        "stages": deepcopy(stages),
    }  # fmt: skip
