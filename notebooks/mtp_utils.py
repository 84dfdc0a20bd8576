"""Stands in for the package where a notebook is opened with an interpreter that it is not installed in.

A notebook looks for modules beside itself first, so it finds this: it becomes the package of this clone, or says which
interpreter is wanted. Older Pythons can read it.
"""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("accelerate", "pandas", "peft", "safetensors", "scipy", "seaborn", "torch", "tqdm", "transformers")

missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
missing = ["Python 3.11 or newer"] * (sys.version_info < (3, 11)) + missing
if missing:
    wanted = f"{ROOT}/.venv/bin/python, which `./reproduce.sh lab` sets up and opens the notebooks with"
    raise ImportError(f"{sys.executable} has no {', '.join(missing)}; the interpreter wanted is {wanted}")
spec = importlib.util.spec_from_file_location(__name__, str(ROOT / "mtp_utils" / "__init__.py"))
sys.modules[__name__] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[__name__])
