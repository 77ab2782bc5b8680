"""Uploading an export to the Hugging Face hub. Never happens unless a repository is named."""

from pathlib import Path

from langext.spec import ConfigError


def check(repo: str) -> None:
    """Raise ConfigError unless `repo` reads owner/name and somebody is logged in who may write."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {repo}: {error}") from None
    if repo.count("/") != 1:
        raise ConfigError(f"--push-to-hub {repo}: name the repository as owner/name")
    if get_token() is None:
        raise ConfigError("--push-to-hub: nobody is logged in to the hub here; run `hf auth login` first")


def push(folder: Path, repo: str) -> str:
    """Upload a folder to a private repository, made when it is not there; returns its address. Raises ConfigError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        made = api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export by langext")
    except (HfHubHTTPError, OSError) as error:
        raise ConfigError(f"--push-to-hub {repo}: {error}; the export is still in {folder}") from None
    return str(made)
