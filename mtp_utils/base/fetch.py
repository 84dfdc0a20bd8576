"""Models and texts of the hub: one commit of each, held to.

A name is resolved once: the commit goes into `build/hub.lock.json`, and later runs ask for that one. Files are fetched by
huggingface_hub, off line from its cache. Rehearsed on caches laid out by hand, not on the hub.
"""

import re
from pathlib import Path

from . import paths
from .files import read_json, write_json
from .refusals import first_line, require

MODEL_FILES = ["*.json", "model*.safetensors", "*.model", "*.txt"]  # other weights beside these are the same ones once more


def lock_path() -> Path:
    """Where the commits are written down."""
    return paths.cache().parent / "hub.lock.json"


def fetch(repo: str, kind: str, patterns: list[str], revision: str | None = None) -> Path:
    """The folder of one commit of a model or dataset (kind), with the files of these patterns; its name is the commit.

    Raises ValueError that says what to do: a wrong name, a gated repository, no network and nothing cached.
    """
    name, lock = f"{kind} {repo}" + (f"@{revision}" if revision else ""), read_json(lock_path())
    folder = Path(_snapshot(repo, kind, patterns, revision, lock.get(name)))
    if name not in lock:
        write_json(lock_path(), lock | {name: folder.name})
    return folder


def to_fetch(repo: str, kind: str, patterns: list[str], revision: str | None = None) -> tuple[int, int]:
    """(bytes of those files, bytes of them that are not here yet); ValueError as fetch, which it spares."""
    found = _snapshot(repo, kind, patterns, revision, None, dry_run=True)
    return sum(f.file_size for f in found), sum(f.file_size for f in found if f.will_download)


def _snapshot(repo: str, kind: str, patterns: list[str], revision: str | None, commit: str | None, **options):
    from huggingface_hub import snapshot_download

    require(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo), f"{repo!r} is no folder or file here, and no name of the hub's either")
    try:
        return snapshot_download(repo, repo_type=kind, revision=commit or revision, allow_patterns=patterns, **options)
    except Exception as error:  # a dozen classes, of three libraries
        raise ValueError(
            f"cannot get the {kind} {repo!r}{f' at revision {revision!r}' if revision else ''}: {first_line(error)} "
            f"(a hub name needs the network, or a filled cache with HF_HUB_OFFLINE=1, and the right spelling; a gated "
            "one needs its licence accepted on the hub and `hf auth login`)"
        ) from error
