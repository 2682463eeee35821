"""A finished folder, uploaded to the hub of Hugging Face by its own library."""

from __future__ import annotations

import os
import re
from pathlib import Path

from unmask.errors import Failure

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
"""Of a repository; what else the hub does not like it says itself."""


def check_name(name: str) -> None:
    """ValueError where `name` is not OWNER/NAME as the hub takes it."""
    if not NAME.fullmatch(name):
        raise ValueError(f"--push takes OWNER/NAME, not {name!r}")


def push(folder: Path, name: str, *, public: bool) -> str:
    """Make the repository, where there is none, and upload the folder; returns its address.

    Who the user is says the library's own login (`hf auth login`, HF_TOKEN). Failure where the hub cannot be reached or
    refuses; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="unmask")
    try:
        made = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=os.fspath(folder), commit_message="Encoder exported by unmask")
    # The library has no one error: its own, those of its HTTP client, and whatever an odd answer provokes.
    except Exception as error:
        reason = " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())
        raise Failure(
            f"could not push to {name} ({reason.rstrip('.')}); the export is in {folder}: "
            f"hf upload {name} {folder} tries again"
        ) from error
    return str(made)
