"""Notebooks that measure toy tables without torch, and the runner as a process of its own, to be killed and starved."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETUP = """import os, sys, time
from pathlib import Path
import pandas as pd
from mtp_utils.base.profiles import get_profile
from mtp_utils.base.run import Run
run = Run({stem!r}, get_profile(profile))"""
# Each measurement notes that it ran; a slow one then waits until it is allowed to end.
TOY = """def toy(name, rows):
    folder = Path(os.environ["TOY_FOLDER"])
    with open(folder / "log", "a") as log:
        log.write(name + "\\n")
    (folder / f"{name}.pid").write_text(str(os.getpid()))
    while name == "slow" and not (folder / "go").exists():
        time.sleep(0.05)
    return pd.DataFrame({"name": name, "value": [i / 7 for i in range(rows)]})"""


def cell(source: str, kind: str = "code", tags: tuple = ()) -> dict:
    """A notebook cell as it lies in the file."""
    code = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {"tags": list(tags)}, "source": source} | code


def write_notebook(folder: Path, stem: str, *body: str) -> Path:
    """A notebook with a title, the parameters, a run, the given code cells and the last cell."""
    cells = [cell(f"# {stem}", "markdown"), cell("profile = None", tags=("parameters",)), cell(SETUP.format(stem=stem))]
    cells += [cell(source) for source in (TOY, *body, "run.finish()")]
    cells = [c | {"id": f"cell{i}"} for i, c in enumerate(cells)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path = folder / f"{stem}.ipynb"
    path.write_text(json.dumps(content))
    return path


def measure(stem: str, name: str, rows: int = 20) -> str:
    """Source of a cell that measures a toy table."""
    return f"run.measure({stem!r}, toy, name={name!r}, rows={rows})"


def copy_package(to: Path) -> None:
    """The package without its models, in a folder of its own."""
    shutil.copytree(ROOT / "mtp_utils", to / "mtp_utils", ignore=lambda *_: ("ladder", "__pycache__"))


class Runner:
    """The runner on the notebooks in `folder`, its results in `folder / "build"`.

    It runs a copy of the package: an edit during the tests would make a resumed run, rightly, start anew.
    """

    def __init__(self, folder: Path):
        copy_package(folder / "code")
        self.folder = folder
        self.smoke = folder / "build" / "smoke"
        self.environment = os.environ | {
            "MTP_NOTEBOOKS": str(folder), "MTP_BUILD": str(folder / "build"), "TOY_FOLDER": str(folder),
            "IPYTHONDIR": str(folder / "ipython"),
        }  # fmt: skip

    def start(self, *words: str, before: str = "", **options) -> subprocess.Popen:
        """Start it; `before` is Python to run first in its process."""
        # A shell's background job ignores Ctrl-C and hands that down: here it is a terminal's.
        heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
        code = f"{heard}\nimport sys\nfrom mtp_utils.reproduce.__main__ import main\n{before}\nsys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "smoke", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=self.environment, cwd=self.folder / "code", **(pipes | options))

    def run(self, *words: str, **options) -> tuple[int, str, str]:
        """Run it to its end: exit code, stdout, stderr."""
        process = self.start(*words, **options)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def plant_entry(self, notebook: Path) -> None:
        """Leave the entry and the executed copy that an earlier run, which came to its end, would have left."""
        folder = self.smoke / "notebooks"
        folder.mkdir(parents=True)
        entry = {"run": "earlier", "source_sha256": "any", "figures": [], "verdicts": [], "seconds": 1}
        (folder / f"{notebook.stem}.finished.json").write_text(json.dumps(entry))
        (folder / notebook.name).write_bytes(notebook.read_bytes())

    def log(self) -> list[str]:
        """Names of the measurements made so far."""
        return (self.folder / "log").read_text().split()

    def table(self, stem: str) -> bytes:
        return (self.smoke / "tables" / f"{stem}.csv").read_bytes()


def wait_for(condition, seconds: float = 30) -> None:
    """Return once `condition()` holds; AssertionError if it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.05)
