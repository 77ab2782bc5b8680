"""What `langext init` looks at before it writes a pipeline: the base, the text and the machine.

The one rule: of a base on the hub only config and tokenizer are downloaded, and of text only a sample is read.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from langext import devices
from langext.artifacts import first_problem
from langext.cli import first_language
from langext.console import Progress, warn
from langext.data import assets, formats, remote, source_files
from langext.data.sources import Source
from langext.errors import ConfigError, one_line
from langext.languages import Language
from langext.methods import AnyMethod
from langext.models import base_files, bases
from langext.pipeline import estimate, launcher
from langext.pipeline.estimate import Size
from tokenizer_tools import audit

SAMPLE_BYTES = 4_000_000
"""Most bytes of text that are read to know it."""
MEASURED_BYTES = 1_000_000
"""Most bytes of it that are given to the tokenizer."""
METHOD = {"name": "neutral_residues", "gate": "threshold", "calibrate": {"closed": 0.995}, "extra_params_frac": 0.2}
"""The method that a first run takes; docs/recipe.md has its settings and what they were compared with."""
AT_LEAST = "at least "
"""Said of a size of which only a lower bound is known."""
HUB_FILES = ["config.json", "tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"]


@dataclass(frozen=True)
class Base:
    """A base model without its weights. All is None when the hub could not be reached."""

    config: Any = None
    """Its transformers config."""
    tokenizer: Any = None
    size: Size | None = None
    """Its parameters, and those that `METHOD` adds."""


@dataclass(frozen=True)
class AskedText:
    """An option that names text."""

    option: str
    path: str | None
    encoding: str | None
    column: str | None = None

    def beside(self, what: str) -> str:
        """The option that names the encoding or the column of this text."""
        return self.option.replace("text", what)

    def __post_init__(self) -> None:
        """Raise ConfigError for an encoding or a column of no text."""
        for what, given in (("encoding", self.encoding), ("column", self.column)):
            if given is not None and not self.path:
                raise ConfigError(f"{self.beside(what)}: is of text that {self.option} names; give that, too")


@dataclass(frozen=True)
class Text:
    """Text of one language, as a sample of it shows it."""

    path: str
    """As a pipeline names it from any folder."""
    size_bytes: int
    """Bytes of text in all, as UTF-8."""
    bound: str
    """"" where the size is exact, else what it is: "about ", "at most ", "at least "."""
    use: audit.Use | None
    """How the base's tokenizer writes it; None without a tokenizer."""
    encoding: str | None = None
    """As the source of a pipeline has it; None for UTF-8."""
    doubt: str = ""
    """What speaks against its being in the language; empty when nothing does."""
    column: str | None = None
    """The field that holds it; None for `text`."""

    @property
    def tokens(self) -> int | None:
        """Tokens of the base in all, at the rate of the sample."""
        return round(self.size_bytes / self.use.bytes_per_token) if self.use and self.use.tokens else None


@dataclass(frozen=True)
class Machine:
    """What this machine computes with."""

    gpus: int
    gpu: str
    """Name of the first GPU; empty without one."""
    gpu_bytes: int
    """Memory of the smallest GPU; 0 without one."""
    cores: int
    memory_bytes: int
    """Both are 0 of another machine, of which nobody has said it."""
    nodes: int = 1
    """Machines like this one that train together."""

    @property
    def all_gpus(self) -> int:
        """GPUs of all of them."""
        return self.gpus * self.nodes


def base(name: str, revision: str | None) -> Base:
    """Config and tokenizer of a base: a folder, a GGUF file, an asset, a run, or a hub id if the hub can be reached.

    Raises ConfigError when there is no such base, or when langext cannot extend it.
    """
    bases.check(name)
    if bases.place_if_here(name, revision) is None and name.startswith(assets.PREFIX):
        assets.resolve(name)  # says how to fetch it
    if bases.place_if_here(name, revision) is None and not _download(name, revision):
        return Base()
    if bases.place_if_here(name, revision) is None:
        raise ConfigError(f"{name}: its repository has no tokenizer that langext reads ({', '.join(base_files.TOKENIZERS)})")
    from langext.architectures import families

    config = bases.config_if_here(name, revision)
    families.of(config)
    method: Any = TypeAdapter(AnyMethod).validate_python(METHOD)
    return Base(config, bases.tokenizer_if_here(name, revision), estimate.size(config, [*bases.methods(name), method], 0))


def _download(name: str, revision: str | None) -> bool:
    """Fetch config and tokenizer from the hub. Returns whether it could be reached. Raises ConfigError as it refuses."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        snapshot_download(name, revision=revision, allow_patterns=HUB_FILES)
    except GatedRepoError:
        raise ConfigError(f"--base: {name} is gated; accept its licence on the hub and log in with `hf auth login`") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ConfigError(f"--base: {name}: no such folder here and no such model on the hub") from None
    except (HfHubHTTPError, OSError):  # LocalEntryNotFoundError, which means that there is no connection, is an OSError
        return False
    return True


def text(asked: AskedText, language: Language, tokenizer: Any) -> Text:
    """A file, a folder or a pattern of text. Raises ConfigError when there is none to read."""
    path, option = asked.path or "", asked.option
    try:
        more = {"text_column": asked.column} if asked.column else {}
        source = Source.model_validate({"language": language.code, "path": path, "encoding": asked.encoding, **more})
    except ValidationError as error:
        raise ConfigError(f"{option}: {path}: {first_problem(error)}") from None
    if source.piped:
        raise ConfigError(f"standard input can be read only once; give {option} a file or a folder")
    try:
        source.check()
        texts, size, bound = _sample(source)
    except ConfigError as error:  # it names the key of a pipeline, which is an option here
        said = str(error).replace("set encoding: ", f"give {asked.beside('encoding')} ")
        raise ConfigError(said.replace("with text_column", f"with {asked.beside('column')}")) from None
    use = audit.use(tokenizer, _thinned(texts)) if tokenizer is not None else None
    doubt = first_language.doubt(list(_thinned(texts)), language)
    return Text(
        _from_anywhere(path), size, bound, use, source.encoding, doubt and f"{option}: {one_line(path)}: {doubt}", asked.column
    )


def _sample(source: Source) -> tuple[list[str], int, str]:
    """Texts from files spread over a source, bytes of text in all of it, and how sure that is.

    Raises ConfigError when there are none, with what cannot be read.
    """
    record, tolerant = source.glance(), source.model_copy(update={"max_bad_frac": 1.0})
    texts, unread = list[str](), list[str]()
    read = whole = on_disk = 0
    progress = Progress(f"{source.domain}: reading a sample", SAMPLE_BYTES)
    for rank in _spread(record.tasks):
        before, reader = read, tolerant.reader(record)
        for document in reader.run(None, rank, record.tasks):
            texts.append(document.text)
            read += len(document.text.encode())
            progress.at(read)
            if read >= SAMPLE_BYTES:
                break
        else:
            whole, on_disk = whole + read - before, on_disk + record.files[rank].bytes
            unread += reader.unread.places
            continue
        break
    if not texts:
        raise ConfigError(unread[0] if unread else f"{source.origin}: no document with text in what was read of it")
    total = sum(file.bytes for file in record.files)
    if on_disk == total:
        return texts, read, ""
    if on_disk:
        return texts, max(read, round(total * whole / on_disk)), "about "
    packed = any(formats.packing(Path(file.name)) or formats.kind(Path(file.name)) == formats.PARQUET for file in record.files)
    return texts, max(read, total), AT_LEAST if packed else "at most "


def _spread(count: int) -> Iterator[int]:
    """The numbers below `count`, so that the first of them lie far from each other."""
    step = 1 << count.bit_length()
    met: set[int] = set()
    while step:
        for number in range(0, count, step):
            if number not in met:
                met.add(number)
                yield number
        step //= 2


def _thinned(texts: Sequence[str]) -> Iterator[str]:
    """Every n-th text, so that they are `MEASURED_BYTES` at most, or the beginning of the first."""
    size = sum(len(text.encode()) for text in texts)
    for text in texts[:: -(-size // MEASURED_BYTES)]:
        yield text.encode()[:MEASURED_BYTES].decode(errors="ignore")


def _from_anywhere(path: str) -> str:
    if path.startswith(assets.PREFIX) or remote.is_remote(path):
        return path
    if source_files.is_pattern(path):
        folder, rest = source_files.parts(path)
        return str(Path(folder).expanduser().resolve() / rest)
    return str(Path(path).expanduser().resolve())


def english(tokenizer: Any) -> audit.Use:
    """How a tokenizer writes English: the pages of Python's `help()`, which are on every machine."""
    from pydoc_data.topics import topics

    return audit.use(tokenizer, list(islice(_prose(topics.values()), 200)))


def _prose(pages: Iterable[str]) -> Iterator[str]:
    """Paragraphs that are no code, which is written with more tokens than prose."""
    for page in pages:
        for paragraph in page.split("\n\n"):
            if len(paragraph) > 300 and not paragraph.startswith("    "):
                yield paragraph


def machine(gpus: int | None = None, gpu_gib: float | None = None, nodes: int = 1) -> Machine:
    """GPUs, cores and memory of this machine, or with other GPUs, in the place of those that will train.

    Raises ConfigError where nothing says how much memory they have.
    """
    if not gpus and (gpu_gib is not None or nodes > 1):
        raise ConfigError(f"--{'nodes' if gpu_gib is None else 'gpu-memory'}: give --gpus as well, how many each machine has")
    here = _this_machine()
    if gpus is None:
        if why := devices.unused_gpus():
            warn(f"the pipeline is written for the CPU: {why}")
        return here
    if gpus == 0:
        return replace(here, gpus=0, gpu="", gpu_bytes=0)
    if gpu_gib is None and not here.gpus:
        raise ConfigError("--gpus: there is none here to ask; give --gpu-memory, the GiB of each, as well")
    memory = here.gpu_bytes if gpu_gib is None else round(gpu_gib * 2**30)
    known = here if gpus == here.gpus and gpu_gib is None else replace(here, cores=0, memory_bytes=0)
    return replace(known, gpus=gpus, gpu=here.gpu if gpu_gib is None else "GPU", gpu_bytes=memory, nodes=nodes)


def _this_machine() -> Machine:
    import psutil
    import torch

    count = devices.gpus()
    name = torch.cuda.get_device_name(0) if count else ""
    return Machine(count, name, launcher.gpu_memory(), launcher.cores(), psutil.virtual_memory().total)
