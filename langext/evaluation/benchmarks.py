"""Names of public benchmarks, and checks that their data can be loaded. Rule: check before the training, download nothing.

Many data sets that lm-eval uses are Python scripts. The datasets library has refused to run scripts since version 4
(https://github.com/EleutherAI/lm-evaluation-harness/issues/3171).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from langext.errors import ConfigError, placeholder, user_path
from langext.languages import Language, find

SCRIPTS = {
    "CogComp/mc_taco": "social_iqa",
    "EleutherAI/advanced_ai_risk": "",
    "EleutherAI/hendrycks_ethics": "moral_stories",
    "EleutherAI/logiqa": "agieval_logiqa_en",
    "EleutherAI/mutual": "social_iqa",
    "EleutherAI/persona": "",
    "EleutherAI/pile": "paloma",
    "EleutherAI/sycophancy": "truthfulqa_mc1",
    "EleutherAI/unscramble": "",
    "allenai/qasper": "",
    "asi/wikitext_fr": "a held-out source of your own, for its bits per byte",
    "baber/logiqa2": "agieval_logiqa_en",
    "bigbio/meddialog": "",
    "bigbio/mediqa_qa": "medmcqa",
    "bigbio/meqsum": "",
    "bigbio/pubmed_qa": "medmcqa",
    "csebuetnlp/xlsum": "",
    "facebook/flores": "belebele_<language>, which asks about the same texts",
    "juletxara/mgsm": "global_mmlu_<language>",
}
"""Data set that is a script -> a task that measures something similar and can be loaded; empty when there is none."""
FILES = {"arrow", "csv", "json", "parquet", "text"}
"""Names that lm-eval uses as `dataset_path` when the data are local files."""


@dataclass(frozen=True)
class Source:
    """Where the data of a task come from."""

    task: str
    path: str
    config: str | None
    data_files: Any = None
    data_dir: Any = None
    """A folder of files, beside or in place of `data_files`."""


def check(sources: list[Source]) -> None:
    """Raise ConfigError when data cannot be loaded: a script, a missing file or data set, or no connection and nothing cached.

    Asks the hub about each data set, or looks into the local cache when the hub cannot be reached. Downloads nothing.
    """
    asked: set[str] = set()
    for source in sources:
        if source.path in SCRIPTS:
            raise ConfigError(_script(source))
        user_path(source.path, f"tasks: {source.task}: dataset_path")
        if source.path in FILES or Path(source.path).exists():
            _check_files(source)
        elif source.path.startswith(("/", ".", "~")) or source.path.count("/") > 1:
            raise ConfigError(f"tasks: {source.task}: {source.path}: no such folder")
        elif _on_hub(source) is False and (key := f"{source.path} {source.config}") not in asked:
            asked.add(key)
            _check_cache(source)


def files(source: Source) -> list[Path]:
    """The local files of a task's data: those that it names, existing or not, those that fit a pattern, and those in a folder
    that it names. URLs are left out. Raises ConfigError for a text that can be no path.
    """
    named = source.data_files.values() if isinstance(source.data_files, dict) else [source.data_files]
    every = [file for entry in named for file in (entry if isinstance(entry, list) else [entry]) if isinstance(file, str)]
    local = [file for file in every if "://" not in file]
    for file in local:
        user_path(file, f"tasks: {source.task}: data_files")
    folders = [Path(path) for path in (source.path, source.data_dir) if isinstance(path, str) and Path(path).is_dir()]
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    for file in local:
        pattern = any(c in file for c in "*?[")
        found += [Path(path) for path in glob(file, recursive=True) if Path(path).is_file()] if pattern else [Path(file)]
    return sorted(found)


def _check_files(source: Source) -> None:
    for path in files(source):
        wrong = placeholder(path) if path.is_file() else "no such file"
        if wrong:
            raise ConfigError(f"tasks: {source.task}: {path}: {wrong}")


def _script(source: Source) -> str:
    better = f"take instead: {instead}" if (instead := SCRIPTS.get(source.path)) else "no replacement is known"
    return f"tasks: {source.task}: its data set {source.path} is a script, which datasets does not run; {better}"


_reached: dict[str, bool] = {}
"""Data set -> whether the hub could be reached when it was asked about it."""


def _on_hub(source: Source) -> bool:
    """True when the hub has the data set as files (or is busy), False when the hub cannot be reached.

    Raises ConfigError when the data set is unknown, gated or a script.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (  # HTTPError belongs to the HTTP client that the hub library uses
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        RepositoryNotFoundError,
    )

    if source.path in _reached:
        return _reached[source.path]
    if False in _reached.values():
        return False  # without a connection every further try would wait for the timeout
    try:
        info = HfApi().dataset_info(source.path, timeout=10)
        if info.gated:
            HfApi().auth_check(source.path, repo_type="dataset")
    except GatedRepoError:
        raise ConfigError(
            f"tasks: {source.task}: {source.path} is gated; accept its terms on the hub and log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise ConfigError(f"tasks: {source.task}: the hub has no data set {source.path}") from None
    except HfHubHTTPError:
        return True  # the hub answers but is busy: no reason to stop the run
    except (HTTPError, OSError):
        _reached[source.path] = False
        return False
    script = f"{source.path.split('/')[-1]}.py"
    if script in {file.rfilename for file in info.siblings or []}:  # datasets refuses it even when there are data files, too
        raise ConfigError(_script(source))
    _reached[source.path] = True
    return True


def _check_cache(source: Source) -> None:
    from datasets.packaged_modules.cache.cache import Cache

    try:
        Cache(
            dataset_name=source.path.split("/")[-1], config_name=source.config, repo_id=source.path, version="auto", hash="auto"
        )
    except (ValueError, OSError):
        shown = f"{source.path} ({source.config})" if source.config else source.path
        raise ConfigError(
            f"tasks: {source.task}: its data set {shown} is not on this machine, and the hub cannot be reached; load it once "
            "with a connection, or leave the task out"
        ) from None


def auto_tasks(language: Language) -> list[str]:
    """lm-eval's names of the tasks of the neutral residues paper (https://arxiv.org/abs/2410.02744) for one language.

    ARC-Challenge, HellaSwag, MMLU, CommonsenseQA and Belebele, or their machine translations (https://arxiv.org/abs/2307.16039).
    Some of the names may not exist in lm-eval.
    """
    if language.code == "eng_Latn":
        return ["arc_challenge", "hellaswag", "mmlu", "commonsense_qa", "belebele_eng_Latn"]
    translated = [f"{name}_{language.iso1}" for name in ("arc", "hellaswag", "m_mmlu")] if language.iso1 else []
    return [*translated, f"belebele_{language.code}"]


def public_tasks(language: Language) -> list[str]:
    """lm-eval's names of public tasks for one language, made from its naming scheme: some may not exist in lm-eval.

    Belebele, FLORES-200 languages (https://arxiv.org/abs/2308.16884); XNLI (https://arxiv.org/abs/1809.05053); XCOPA
    (https://arxiv.org/abs/2005.00333); XWinograd and XStoryCloze (https://arxiv.org/abs/2211.01786, https://arxiv.org/abs/2112.10668);
    PAWS-X (https://arxiv.org/abs/1908.11828); Global-MMLU (https://arxiv.org/abs/2412.03304); MultiBLiMP
    (https://arxiv.org/abs/2504.02768); LAMBADA, translated. FLORES itself cannot be loaded any more.
    """
    # XWinograd alone calls Japanese `jp`.
    short = "jp" if language.iso1 == "ja" else language.iso1
    translated = [
        "xnli_{}", "xcopa_{}", "xwinograd_{}", "xstorycloze_{}", "paws_{}", "global_mmlu_{}", "global_mmlu_full_{}",
        "mmlu_prox_{}", "lambada_openai_mt_{}", "truthfulqa_{}_mc1",
    ]  # fmt: skip
    names = [*auto_tasks(language), f"multiblimp_{language.iso3}", f"global_piqa_parallel_cloze_{language.code.lower()}"]
    if language.code == "eng_Latn":
        names += [
            "arc_easy",
            "piqa",
            "winogrande",
            "openbookqa",
            "boolq",
            "copa",
            "social_iqa",
            "sciq",
            "lambada_openai",
            "blimp",
        ]
    if short:
        names += [name.format(short if name.startswith("xwinograd") else language.iso1) for name in translated]
    return names


def of_task(task: str, codes: Iterable[str]) -> str | None:
    """The code, one of `codes`, of the language that a public task or a continuation task measures; None when unknown."""
    return next((code for code in codes if task in (*public_tasks(find(code)), f"continuation_{code}")), None)
