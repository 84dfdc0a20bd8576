"""Files that are whole or not there: written beside their place and renamed; and what tells two of them apart."""

import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

from .refusals import require


def read_json(path: Path) -> dict:
    """The content of a JSON file, or an empty dict where there is none."""
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def write_json(path: Path, content) -> None:
    """Write `content` to `path`, whole or not at all."""
    write_atomic(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def whole(path: Path):
    """A place beside `path` to write to, which is renamed when that is done, so that whatever happens `path` is the old file or
    the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(data: bytes) -> str:
    """Hexadecimal sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def gguf_of(path: Path) -> Path | None:
    """The GGUF file that a path stands for: any file, or the only one of a folder that holds no other model; else None.

    Raises ValueError for a folder with several.
    """
    if path.is_file():
        return path
    found = [] if not path.is_dir() or (path / "config.json").exists() else sorted(path.glob("*.gguf"))
    require(len(found) < 2, f"{path} holds {len(found)} GGUF files, give one: {', '.join(p.name for p in found)}")
    return found[0] if found else None


def gguf_name(path: Path) -> str:
    """What a GGUF file is called: its name without its ending."""
    return path.name.removesuffix(".gguf")
