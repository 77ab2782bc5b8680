"""What `langext chat` does: talk to the base and to the extended model, side by side in a terminal."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from langext import console
from langext.artifacts import BASE, MANIFEST, Model, first_problem, read_object
from langext.errors import ConfigError
from langext.export_summary import PublicBase

HELP = "/new starts over, /quit leaves"


@dataclass
class Speaker:
    """One of the models, and its conversation so far."""

    name: str
    net: Any
    tokenizer: Any
    as_itself: Callable[[], AbstractContextManager[None]] = nullcontext
    """Context in which `net` is this model. Needed because base and extended model can share one net."""
    messages: list[dict[str, str]] = field(default_factory=list)

    def answer(self, text: str, tokens: int) -> str:
        """The reply to `text`, at most `tokens` tokens: an answer if the tokenizer has a chat template, else a continuation."""
        import torch

        from langext.data import documents
        from langext.evaluation import generation

        if self.tokenizer.chat_template:
            self.messages.append({"role": "user", "content": text})
            prompt = self.tokenizer.apply_chat_template(self.messages, add_generation_prompt=True, tokenize=False)
            ids = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        else:
            ids = torch.tensor(documents.encode(self.tokenizer, [text]))
        with self.as_itself():
            out = generation.continue_greedily(self.net, self.tokenizer, ids.to(self.net.device), tokens)
        reply = self.tokenizer.decode(out, skip_special_tokens=True).strip()
        self.messages.append({"role": "assistant", "content": reply})
        return reply


def speakers(where: Path, base: Path | None, *, trust: bool = False) -> list[Speaker]:
    """The base and the newest trained model of a run folder, or the base and an exported model.

    The base of an exported model is `base` if given, else the base of the run that it lies in, else the base from the hub if it
    is on this machine; without any of these, only the exported model is returned. With `trust` the code that lies in the folder
    of an exported model or of `base` is run. Raises ConfigError for any other folder, and for code without `trust`.
    """
    from langext.models import bases

    model = bases.extended(str(where)) if where.is_dir() else None
    if model is not None and base:
        raise ConfigError("--base is for exported models; a run folder knows its base")
    if model is not None:
        return _both(model)
    if not (where / "config.json").is_file():
        raise ConfigError(_no_model(where))
    extended = _exported("extended", where, trust)
    then = _exported("base", base, trust) if base else _base_of(where)
    if then is None:
        console.say("its base is not on this machine; --base takes the folder of it")
    return [then, extended] if then else [extended]


def _both(model: Model) -> list[Speaker]:
    import torch

    from langext.models import loading

    live = loading.load(model, torch.bfloat16, _device())
    then = loading.reference(model, live)
    return [Speaker("base", then.net, then.tokenizer, then.as_itself), Speaker("extended", live.net, live.tokenizer)]


def _base_of(where: Path) -> Speaker | None:
    """The base of the run that an export lies in, else the hub model that it names; None when neither is on this machine."""
    import torch
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    from langext.models import bases, loading

    kept = where.resolve().parent.parent / BASE
    if (kept / MANIFEST).is_file():
        live = loading.load(Model(kept), torch.bfloat16, _device())
        return Speaker("base", live.net, live.tokenizer)
    path = where / "export.json"
    written = read_object(path).get("base") if path.is_file() else None
    try:
        named = PublicBase.model_validate(written) if written is not None else None
    except ValidationError as error:
        raise ConfigError(f"{path}: base.{first_problem(error)}") from None
    if named is not None:
        try:
            folder = snapshot_download(named.hub, revision=named.commit, allow_patterns=bases.HUB_FILES, local_files_only=True)
            return _exported("base", Path(folder), trust=False)
        except (LocalEntryNotFoundError, HFValidationError, ConfigError, OSError):  # not here, not all of it, or no repository
            return None
    return None


def _no_model(where: Path) -> str:
    if (where / "delta.json").is_file():
        return f"{where}: a delta; `langext apply` makes a run folder of it, and that can be talked to"
    if where.suffix == ".gguf" or (where.is_dir() and any(where.glob("*.gguf"))):
        return f"{where}: GGUF files run in llama.cpp; give the run folder instead"
    return f"{where}: neither a run folder nor an exported model (no config.json)"


def _exported(name: str, folder: Path, trust: bool) -> Speaker:
    """The model in a Hugging Face folder. Raises ConfigError when it brings code and `trust` is False."""
    import torch

    from langext.models import exported

    net = exported.load(folder, torch.bfloat16, _device(), trust=trust)
    return Speaker(name, net, exported.load_tokenizer(folder, trust=trust))


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def talk(found: list[Speaker], tokens: int, lines: Iterator[str]) -> None:
    """Answer each line with every speaker, until /quit or the end of the lines."""
    chats = all(speaker.tokenizer.chat_template for speaker in found)
    console.say(f"{'Say something' if chats else 'Begin a text, and each model goes on'}; {HELP}.")
    for line in lines:
        text = line.strip()
        if text == "/quit":
            return
        if text == "/new":
            for speaker in found:
                speaker.messages.clear()
            console.say("forgotten")
        elif text.startswith("/"):
            console.say(f"no command {text.split()[0]}; {HELP}")
        elif text:
            console.columns({speaker.name: speaker.answer(text, tokens) for speaker in found})


def typed() -> Iterator[str]:
    """The lines that the user types, until the end of the input."""
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
