"""Executes one notebook with papermill, shows where it is, and believes it only if its last cell says so."""

import contextlib
import json
import logging
import os
import shutil
import sys
import threading
import time
from pathlib import Path

from ..base import paths, ranks
from ..base.files import write_json
from ..base.locks import Stop
from ..base.profiles import Profile

START_S = 600  # in which a kernel has to start: a busy machine, a slow disk


def run_notebook(path: Path, profile: Profile, run_id: str) -> dict:
    """Execute one notebook and return the entry its last cell wrote.

    The executed copy lies in `build/<profile>/notebooks/<stem>.ipynb`, after a failure as `<stem>.failed.ipynb`.
    Raises Stop if a cell fails, the kernel dies, or the notebook ends without having come to its last cell.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    from ..base.artifacts import source_sha256

    if "profile" not in papermill.inspect_notebook(_escape(path)):
        raise Stop(f"{path.name} has no `profile` in a cell tagged `parameters`")
    folder = paths.notebooks(profile.folder)
    mine = "" if ranks.first() else f".{ranks.number()}"  # every process has a copy, and the first one's is kept
    output = folder / f"{path.stem}{mine}.tmp.ipynb"
    failed = folder / f"{path.stem}{mine}.failed.ipynb"
    for earlier in (failed, *((folder / path.name, folder / f"{path.stem}.finished.json") if ranks.first() else ())):
        earlier.unlink(missing_ok=True)
    logging.getLogger("papermill").addHandler(logging.NullHandler())  # what it has to say stands in our one line
    started, source = time.monotonic(), source_sha256(path.stem)
    with _Display(path, folder / f".progress{mine}") as display:
        kernel = _own_kernel(paths.build(profile.folder) / ".jupyter")
        os.environ |= {"MTP_RUN": run_id, "MTP_PROGRESS_FILE": str(display.file)} | kernel
        try:
            papermill.execute_notebook(
                _escape(path), _escape(output), {"profile": profile.name}, kernel_name="python3", progress_bar=False,
                start_timeout=START_S, execution_timeout=profile.timeout_s, on_cell_start=display.cell,
                shutdown_kernel="immediate", extra_arguments=["--log-level=ERROR", "--HistoryManager.enabled=False"],
            )  # fmt: skip
            reason = None
        except papermill.PapermillExecutionError as error:
            reason = f"In [{error.exec_count}]: {error.ename}: {(error.evalue.splitlines() or [''])[0]}"
        except CellTimeoutError:
            reason = f"a cell took longer than the {profile.timeout_s} s of profile {profile.name}"
        except DeadKernelError:
            reason = "its kernel died (out of memory?)"
    if source_sha256(path.stem) != source:
        reason = reason or "it was edited while it ran: start again"
    entry = finished(path, profile, run_id, output) if ranks.first() else {}
    if reason or entry is None:
        with contextlib.suppress(FileNotFoundError):
            os.replace(output, failed)
        raise Stop(f"{path.stem} failed, {reason or 'it ended before its last cell, run.finish()'}; see {failed}")
    if ranks.first():
        _strip(output)
        os.replace(output, folder / path.name)
    else:
        output.unlink()
    return entry | {"seconds": round(time.monotonic() - started, 1)}


def _own_kernel(home: Path) -> dict[str, str]:
    """What makes `python3` this very interpreter, whatever kernels and start-up files the user has; it is written to `home`."""
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    write_json(home / "kernels" / "python3" / "kernel.json", {"argv": argv, "display_name": "Python 3", "language": "python"})
    os.environ.pop("PYTHONSTARTUP", None)
    return {"JUPYTER_PATH": str(home), "JUPYTER_RUNTIME_DIR": str(home / "runtime"), "IPYTHONDIR": str(home / "ipython")}


def finished(path: Path, profile: Profile, run_id: str, executed: Path | None = None) -> dict | None:
    """The entry of a notebook's last cell, if it was written in this run, by this source, and the copy is there."""
    from ..base.artifacts import source_sha256

    folder = paths.notebooks(profile.folder)
    try:
        entry = json.loads((folder / f"{path.stem}.finished.json").read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    same = entry["run"] == run_id and entry["source_sha256"] == source_sha256(path.stem)
    return entry if same and (executed or folder / path.name).is_file() else None


def _strip(path: Path) -> None:
    """Remove papermill's metadata, which hold times and paths."""
    notebook = json.loads(path.read_text("utf-8"))
    for part in (notebook, *notebook["cells"]):
        part["metadata"].pop("papermill", None)
    write_json(path, notebook)


def _escape(path: Path) -> str:
    return str(path).replace("{", "{{").replace("}", "}}")  # papermill takes its paths for format strings


class _Display:
    """Shows on stderr the cell a notebook is in, and the bar its measurement writes to `file`."""

    def __init__(self, path: Path, file: Path):
        self.file = file
        self.total = len(json.loads(path.read_text("utf-8"))["cells"]) + 1  # papermill adds the one with the parameters
        self.position, self._shown = 0, ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self):
        self.file.write_text("")
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
        self.file.unlink(missing_ok=True)

    def cell(self, cell, cell_index: int) -> None:
        """Called by nbclient when a cell starts."""
        self.position = min(cell_index + 1, self.total)

    def _follow(self) -> None:
        terminal = sys.stderr.isatty()
        while not self._done.wait(0.3 if terminal else 30):  # a log file gets a line now and then
            tail = self.file.read_bytes()[-1000:].decode("utf-8", "replace")
            bar = next((part for part in reversed(tail.split("\r")) if part), "").strip()
            line = f"  cell {self.position}/{self.total}  {bar}"
            if line != self._shown:
                width = shutil.get_terminal_size().columns - 1
                print(f"\r\x1b[K{line[:width]}" if terminal else line, end="" if terminal else "\n", file=sys.stderr)
                sys.stderr.flush()
            self._shown = line
        if terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
