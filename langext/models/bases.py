"""Find base models and make them available as a local folder with config, tokenizer and safetensors.

A base is a hub id, a local folder, a .gguf file, an asset or an earlier run. An earlier run also brings its extensions.
Rule: a run keeps the identity and the file hashes of its base, and refuses to go on with another one.
"""

import functools
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langext.artifacts import (
    BASE,
    JOB,
    MANIFEST,
    BaseManifest,
    Job,
    Manifest,
    Model,
    file_record,
    fingerprint,
    finished,
    is_run,
    read_as,
    read_base,
    sha256_file,
    write_json,
)
from langext.console import bars, say, told
from langext.data import assets
from langext.errors import ConfigError, user_path
from langext.models import base_files, gguf_base
from tokenizer_tools import folder as tokenizer_files

if TYPE_CHECKING:
    from langext.methods.base import Method
    from langext.methods.extended import Earlier
    from langext.models.loading import Record

RUNS = "runs/"
"""How the name of an earlier run begins, where it has no folder of its own: it is none of the hub."""
Files = tuple[tuple[str, int, int], ...]
"""Name, time and size of each file."""
HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "merges.txt", "*.jinja", "README.md", *base_files.LICENCES]


def unseen(base: str, revision: str | None) -> bool:
    """Whether the base is one of the hub, of which nothing is on this machine: it may not even exist."""
    try:
        return _local(base) is None and place_if_here(base, revision) is None
    except ConfigError:  # an asset that has not been fetched
        return False


def check(base: str) -> None:
    """Raise ConfigError when a local base does not exist or is not a causal language model with a tokenizer.

    A hub id is not checked: that would need a download.
    """
    path = _local(base)
    if path is None:
        return
    if not path.exists():
        raise ConfigError(
            f"base_model: {base}: no such {'run here; finish it first' if base.startswith(RUNS) else 'file or folder'}"
        )
    if path.is_file() and path.suffix != ".gguf":
        raise ConfigError(f"base_model: {base}: expected a Hugging Face folder or a .gguf file")
    if path.is_file():
        gguf_base.check(path)
    if path.is_dir():
        from langext.models import loading

        model = extended(base)
        _examine(loading.read_record(model).base if model else path)
        unstackable = next((m for m in methods(base) if not m.stackable), None)
        if unstackable:
            raise ConfigError(
                f"base_model: {base}: nothing can be stacked on {unstackable.name}; give the checkpoint that its run exported"
            )


def _examine(folder: Path) -> None:
    """Raise ConfigError when the folder does not hold a model that can be extended exactly as it is; reads no weights.

    What was found good is not looked at again while its files stay as they are: a sweep plans many runs with one base.
    """
    _found_good(folder, files_of(folder))


def files_of(folder: Path) -> Files:
    """What changes when a file of a folder does: what was found out of it holds until then."""
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files)


@functools.cache
def _found_good(folder: Path, files: Files) -> None:
    from langext.architectures import families
    from langext.models import loading

    config = loading.load_config(folder)
    families.of(config)
    base_files.check(folder, config, loading.load_tokenizer(folder))


def identity(base: str, revision: str | None) -> dict[str, Any]:
    """The values that identify a base: two bases with equal values are the same model."""
    model = extended(base)
    return {"base_model": base, "revision": revision} | ({"model": model.manifest.fingerprint} if model else {})


def check_same(root: Path, base: str, revision: str | None) -> None:
    """Raise ConfigError when the run folder `root` was made with another base, or when files of its base have changed."""
    from langext.models.loading import read_record

    manifest = read_base(root)
    if manifest is None:
        return
    had, now = manifest.identity, identity(base, revision)
    if had != now:
        changed = ", ".join(f"{k} {had.get(k)} -> {now.get(k)}" for k in sorted({*had, *now}) if had.get(k) != now.get(k))
        raise ConfigError(f"{root}: this run was made with another base model: {changed}. Choose another --out.")
    for file in manifest.files:
        if not base_files.decides(file.name):  # recorded by a version of langext that listed all that lay in the folder
            continue
        path = read_record(Model(root / BASE)).base / file.name
        if not path.is_file():
            raise ConfigError(f"base_model: {path} is gone, and this run was made with it; put it back or choose another --out")
        # Hashing gigabytes takes long, so only files of the same size with another modification time are hashed.
        now = path.stat()
        if now.st_size != file.bytes or (now.st_mtime_ns != file.modified_ns and sha256_file(path) != file.sha256):
            raise ConfigError(f"base_model: {path} has changed since this run was made with it. Choose another --out.")


def extended(base: str) -> Model | None:
    """The trained model when `base` is a run folder or one of its stage folders; None for any other base.

    A run folder stands for the last trained model in it. Raises ConfigError for a run or a stage without a trained model.
    """
    path = None if base.startswith(assets.PREFIX) else _local(base)
    if path is None or not path.is_dir():
        return None
    if (path / "model.json").is_file() and (path / MANIFEST).is_file():
        if path.name == BASE or not Model(path).manifest.trained:
            raise ConfigError(f"{base}: holds no trained model; give the run folder or the folder of its train stage")
        if read_base(path.resolve().parent) is None:
            raise ConfigError(f"{base}: a stage that was taken out of its run; give the run folder")
        return Model(path.resolve())
    if not is_run(path):
        return None
    trained = trained_models(finished(path))
    if not trained:
        raise ConfigError(f"{base}: a run without a trained model")
    return Model(trained[-1].path.resolve())


def trained_models(stages: Sequence[tuple[Path, Manifest]]) -> list[Model]:
    """The trained models among the results of a run's finished `stages`, in order."""
    return [Model(path) for path, manifest in stages if manifest.kind == Model.__name__ and manifest.trained]


def content(model: Model) -> str:
    """What a model is by its bytes: of a base those of its files, else those of the stage that made it."""
    base = read_base(model.path.parent) if model.path.name == BASE else None
    return base.content if base else fingerprint(model.manifest.hashes)


def made_again(models: Sequence[str], contents: Sequence[str]) -> str:
    """Which of these models of other runs has no longer the `content` that was recorded, in words; empty where none has.

    A model that is gone has not changed.
    """
    for name, recorded in zip(models, contents, strict=False):
        model = extended(name)
        if model is not None and content(model) != recorded:
            return f"{name} has been trained again since this stage read it"
    return ""


def earlier(base: str) -> "tuple[Earlier, ...]":
    """The extensions that a base already has, oldest first; () unless the base is an earlier run."""
    from langext.methods.extended import DELTA, Earlier
    from langext.models.loading import read_record

    model = extended(base)
    if model is None:
        return ()
    record = read_record(model)
    if record.method is None:
        return record.earlier
    return (*record.earlier, Earlier(record.method, model.path / DELTA, read_as(model.path / JOB, Job).language))


def methods(base: str) -> "tuple[Method, ...]":
    """The methods of the extensions that a base already has, oldest first."""
    return tuple(extension.method for extension in earlier(base))


def prepare(base: str, revision: str | None, out: Path) -> Model:
    """Make the base available as the Model artifact `out`, unless it is there already. Records hub commit and file hashes.

    Raises ConfigError when the base cannot be downloaded or is not a supported model.
    """
    from langext.models import loading

    if (out / MANIFEST).exists():
        return Model(out)
    out.mkdir(parents=True, exist_ok=True)
    path = _local(base)
    commit, root = None, base
    model = extended(base)
    if model is not None:
        folder = loading.read_record(model).base
        its_base = read_base(model.path.parent)
        assert its_base is not None, "a run has a base"
        commit, root = its_base.commit, its_base.root  # the origin of the weights, not the run in between
    elif path is None:
        folder = _from_hub(base, revision)
        commit = folder.name  # the hub's cache names a snapshot folder after its commit
    elif path.suffix == ".gguf":
        say(f"base: converting {path.name} to safetensors")
        folder = gguf_base.convert(path, out / "model")
    else:
        folder = path.resolve()
    _examine(folder)
    base_files.check_values(folder)
    record = loading.Record(folder)
    if model is not None:
        record = _copied(model, base, out)
    loading.write_record(out, record)
    manifest = BaseManifest(
        identity=identity(base, revision),
        commit=commit,
        root=root,
        folder=str(folder),
        local=str(path.resolve()) if path else None,
        files=[
            file_record(path, folder).model_copy(update={"modified_ns": path.stat().st_mtime_ns})
            for path in told("base: checksums", base_files.read(folder))
        ],
    )
    write_json(out / MANIFEST, manifest)
    return Model(out)


def _copied(model: Model, base: str, out: Path) -> "Record":
    """Copy the extensions and the tokenizer of an earlier run into `out`, so that this run works when that one is deleted."""
    from langext.methods.extended import Earlier
    from langext.models import loading

    kept = []
    for k, extension in enumerate(earlier(base)):
        target = out / f"earlier-{k}.safetensors"
        shutil.copyfile(extension.delta, target)
        kept.append(Earlier(extension.method, target, extension.language))
    record = loading.read_record(model)
    tokenizer = None
    if record.tokenizer:
        tokenizer = out / "vocabulary" / "tokenizer"
        shutil.copytree(record.tokenizer, tokenizer, dirs_exist_ok=True)
        shutil.copyfile(record.tokenizer.parent / "new_tokens.json", out / "vocabulary" / "new_tokens.json")
    return loading.Record(record.base, None, tokenizer, tuple(kept), record.padded)


def same_place(manifest: BaseManifest, base: str) -> bool:
    """True when the base of this manifest is the one that `base` means now: a relative path can lead to another folder."""
    path = _local(base)
    return manifest.local == (str(path.resolve()) if path else None)


def plain_name(base: str) -> str:
    """The last part of a base's path, with only letters, digits and -._ in it. It can be published; the full path cannot."""
    return re.sub(r"[^\w.-]", "-", Path(base).name) or "base"


def place_if_here(base: str, revision: str | None) -> Path | None:
    """The local file or folder of a base; None when its config or its tokenizer would have to be downloaded."""
    try:
        path = _local(base)
    except ConfigError:  # an asset that has not been fetched
        return None
    if path is None:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(base, "config.json", revision=revision)
        path = Path(cached).parent if isinstance(cached, str) else None
        if path and tokenizer_files.file(path) is None:  # a download that was stopped, or of the config alone
            return None
    return path if path and path.exists() else None


def config_if_here(base: str, revision: str | None) -> Any:
    """The transformers config of a base from local files only; None when it would have to be downloaded."""
    path = place_if_here(base, revision)
    if path is None:
        return None
    if model := extended(base):
        from langext.models.loading import read_record

        path = read_record(model).base
    if path.suffix == ".gguf":
        return gguf_base.load_config(path)
    from langext.models import loading

    return loading.load_config(path)


def tokenizer_if_here(base: str, revision: str | None) -> Any:
    """The tokenizer of a base from local files only; None when it would have to be downloaded."""
    from langext.models import loading

    path = place_if_here(base, revision)
    if path is None:
        return None
    if model := extended(base):
        path = loading.tokenizer_folder(model)
    return gguf_base.load_tokenizer(path) if path.suffix == ".gguf" else loading.load_tokenizer(path)


def _local(base: str) -> Path | None:
    """The local path of a base; None when it is a hub id. Raises ConfigError for an asset that has not been fetched."""
    if base.startswith(assets.PREFIX):
        return assets.resolve(base)
    path = user_path(base, "base_model")
    # A hub id has exactly one slash (owner/name); a folder of that name wins over it.
    looks_local = base.startswith(("/", ".", "~", RUNS)) or base.endswith(".gguf") or path.exists() or base.count("/") != 1
    return path if looks_local else None


def _from_hub(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        files = {"allow_patterns": HUB_FILES, "ignore_patterns": "consolidated*"}  # a copy of the weights that Mistral's have
        return Path(snapshot_download(repo, revision=revision, tqdm_class=bars(), **files))
    except GatedRepoError:
        raise ConfigError(
            f"base_model: {repo} is gated; accept its licence on the hub and log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise ConfigError(f"base_model: {repo}: no such folder here and no such model on the hub") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ConfigError(
            f"base_model: {repo}: no such folder here, and the hub could not be reached ({type(error).__name__}). "
            "Give a local folder or a .gguf file, or try again with a connection."
        ) from None
