"""Upload an export to the Hugging Face hub. The one rule: nothing is uploaded unless the user names a repository."""

from pathlib import Path

from langext.errors import ConfigError


def check(repo: str) -> None:
    """Check before the work starts that an upload to `repo` can succeed.

    Raises ConfigError unless `repo` has the form owner/name, a user is logged in to the hub, and the repository does not exist
    yet or is private and empty.
    """
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
        info = HfApi().model_info(repo)
    except RepositoryNotFoundError:
        return
    except (httpx2.HTTPError, OSError) as error:
        raise ConfigError(f"--push-to-hub {repo}: the hub could not be reached to check it ({error})") from None
    # The hub itself puts .gitattributes into every new repository.
    files = [file.rfilename for file in info.siblings or [] if file.rfilename != ".gitattributes"]
    if not info.private or files:
        state = "is public" if not info.private else f"holds files already ({files[0]}, ...)"
        raise ConfigError(f"--push-to-hub {repo}: the repository {state}; name one that does not exist yet")


def push(folder: Path, repo: str) -> str:
    """Upload a folder to the private repository `repo`, which is created if needed; return its address on the hub.

    Raises ConfigError when the hub refuses or cannot be reached; the folder stays as it is.
    """
    import httpx2
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export by langext")
    except (httpx2.HTTPError, OSError) as error:
        raise ConfigError(f"--push-to-hub {repo}: {error}; the export is still in {folder}") from None
    return str(address)
