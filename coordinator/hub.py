"""Models of the Hugging Face hub, named by their ids: `path: Qwen/Qwen3-0.6B`, or `…@REVISION`.

They lie in the hub library's own cache, beside what other programs have fetched. What is whole there is used as it is,
without the network; `fetch` gets what is not. Nothing that would be run, and no pickle, is ever fetched.
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from coordinator.errors import VnpuError
from coordinator.weights import WeightsError, weight_bytes

MISSING: Final = "hub:"
"""Before an id, where a folder's path belongs: it is not here."""
WANTED: Final = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "*.tiktoken")
"""One of them at least: another program may have fetched the weights alone."""
SITE: Final = "https://huggingface.co"
WORDS: Final = 200
_ID: Final = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([A-Za-z0-9][\w.-]{0,127}))?", re.ASCII)


class HubError(VnpuError):
    """A model could not be fetched; `fault` says why."""

    def __init__(self, fault: str, *, remedy: str) -> None:
        super().__init__(fault, remedy=remedy)
        self.fault = fault


class HubId(msgspec.Struct, frozen=True):
    """A model's repository, and a branch, tag or commit of it."""

    repo: str
    revision: str = "main"

    def __str__(self) -> str:
        return self.repo if self.revision == "main" else f"{self.repo}@{self.revision}"


def hub_id(path: str) -> HubId | None:
    """What `path` means where there is no such folder; None: it can only be a folder's."""
    found = _ID.fullmatch(path)
    return HubId(found[1], found[2] or "main") if found else None


def located(path: str, folder: Path, environ: Mapping[str, str]) -> str:
    """The folder that a configuration in `folder` means by `path`: one of its own first, then one of the hub's cache.
    `MISSING` and the id where that does not hold it whole."""
    own = (folder / path).resolve()
    named = None if own.exists() else hub_id(path)
    if named is None:
        return str(own)
    found = snapshot(named, environ)
    return f"{MISSING}{named}" if found is None else str(found)


def snapshot(named: HubId, environ: Mapping[str, str]) -> Path | None:
    """Where the cache holds it; None: it does not, or not whole."""
    repository = _repository(named, environ)
    try:
        commit = (repository / "refs" / named.revision).read_text().strip()
    except OSError:
        commit = named.revision
    found = repository / "snapshots" / commit
    try:
        weight_bytes(found)
    except WeightsError:
        return None
    return found if _has_tokenizer(found) else None


def _has_tokenizer(folder: Path) -> bool:
    return any(any(folder.glob(name)) for name in TOKENIZERS)


def _repository(named: HubId, environ: Mapping[str, str]) -> Path:
    return cache(environ) / f"models--{named.repo.replace('/', '--')}"


def cache(environ: Mapping[str, str]) -> Path:
    """As the hub's library has it."""
    home = Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    base = Path(environ.get("HF_HOME") or home).expanduser()
    return Path(environ.get("HF_HUB_CACHE") or base / "hub").expanduser().absolute()


def site(environ: Mapping[str, str]) -> str:
    """Where models are fetched from."""
    return (environ.get("HF_ENDPOINT") or SITE).rstrip("/")


def shown(where: str) -> str:
    """A site without the name and password that its address may have."""
    parts = urlsplit(where)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def fetch(named: HubId, environ: Mapping[str, str]) -> Path:
    """Gets what the cache does not have of it, with progress on standard error; returns its folder. Blocks as long as
    that takes; broken off, it leaves what was here before in use. Raises HubError."""
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        raise HubError("huggingface_hub is not installed", remedy="pip install huggingface_hub") from None
    where, token = site(environ), environ.get("HF_TOKEN") or None
    try:
        commit = HfApi(endpoint=where, token=token).model_info(named.repo, revision=named.revision).sha
        found = Path(
            snapshot_download(
                named.repo,
                revision=commit,  # not the branch: the library would move its ref before the first file is here
                cache_dir=cache(environ),
                allow_patterns=list(WANTED),
                ignore_patterns=["consolidated*"],  # the same weights once more, in another shape
                endpoint=where,
                token=token,
            )
        )
        weight_bytes(found)
    except WeightsError as error:
        raise HubError(error.fault, remedy="name a model whose weights are safetensors") from None
    except Exception as error:  # each version of the library has other ones, and those of what it stands on
        raise _told(named, where, error) from error
    if not _has_tokenizer(found):
        raise HubError(f"{named} has no tokenizer", remedy="name a model with one, or a folder that has one")
    if found.name != named.revision:
        _refer(_repository(named, environ) / "refs" / named.revision, found.name)
    return found


def _refer(ref: Path, commit: str) -> None:
    """The branch or tag means this commit from now on; whoever reads meanwhile sees the old one or the new one. Raises
    HubError."""
    written = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")
    try:
        ref.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(commit)
        written.replace(ref)
    except OSError as error:
        remedy = "make room, or name a cache that can be written by HF_HOME"
        raise HubError(f"{ref} cannot be written: {error.strerror}", remedy=remedy) from None


def _told(named: HubId, where: str, error: Exception) -> HubError:
    """By the names of the library's classes (huggingface_hub.errors)."""
    kinds, there = {kind.__name__ for kind in type(error).__mro__}, shown(where)
    if "GatedRepoError" in kinds:
        return HubError(f"{named} is gated", remedy=f"accept its terms at {there}/{named.repo}, then set HF_TOKEN")
    if "RevisionNotFoundError" in kinds:
        return HubError(f"{named.repo} has no revision {named.revision}", remedy="name a branch, a tag or a commit")
    if "RepositoryNotFoundError" in kinds:
        remedy = "mend the id; where it is private set HF_TOKEN; a folder of that name can be made: vnpu make-model"
        return HubError(f"there is no {named} at {there}", remedy=remedy)
    said = " ".join(str(error).replace(where, there).split())[:WORDS] or type(error).__name__
    remedy = "check the network, or name a mirror by HF_ENDPOINT; or put the model's folder there yourself"
    return HubError(f"{named} cannot be fetched from {there}: {said}", remedy=remedy)
