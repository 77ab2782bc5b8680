"""Uploading an export to the Hugging Face hub. Never happens unless a repository is named."""

from pathlib import Path

from langext.spec import ConfigError


def check(repo: str) -> None:
    """Raise ConfigError unless `repo` reads owner/name, somebody is logged in, and it is new or private and empty."""
    import httpx2
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {repo}: {error}") from None
    if repo.count("/") != 1:
        raise ConfigError(f"--push-to-hub {repo}: name the repository as owner/name")
    if get_token() is None:
        raise ConfigError("--push-to-hub: nobody is logged in to the hub here; run `hf auth login` first")
    try:
        there = HfApi().model_info(repo)
    except RepositoryNotFoundError:
        return
    except (httpx2.HTTPError, OSError) as error:
        raise ConfigError(f"--push-to-hub {repo}: the hub could not be asked about it ({error})") from None
    held = [file.rfilename for file in there.siblings or [] if file.rfilename != ".gitattributes"]
    if not there.private or held:
        state = "is public" if not there.private else f"holds files already ({held[0]}, ...)"
        raise ConfigError(f"--push-to-hub {repo}: the repository {state}; name one that is not there yet")


def push(folder: Path, repo: str) -> str:
    """Upload a folder to a private repository, made when it is not there; returns its address. Raises ConfigError."""
    import httpx2
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export by langext")
    except (httpx2.HTTPError, OSError) as error:
        raise ConfigError(f"--push-to-hub {repo}: {error}; the export is still in {folder}") from None
    return str(made)
