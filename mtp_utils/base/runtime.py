"""Where a run happens (device, dtype, threads) and its seeds: decided once, printed with the reason.

Importing this module does not import torch; deciding does.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import paths, profiles, ranks
from .run import Run

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "peft", "safetensors", "numpy", "scipy", "pandas")
PACKAGES += ("matplotlib", "seaborn", "papermill")


def start(notebook: str, profile: str | None = None) -> Run:
    """Decide everything a notebook's run depends on, print it with the reasons, and return the run.

    `notebook` is the file's name without `.ipynb`; `profile` as in `get_profile`. Raises ValueError for either.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # said, so that no fork makes them warn
    chosen = profiles.get_profile(profile)
    if ranks.count() > 1:
        ranks.meet()  # before anything lies on a device: each process takes its own
    provenance = environment()
    run = Run(notebook, chosen, provenance | {"profile": chosen.name, "base_seed": 0})
    run.sentinel.unlink(missing_ok=True)
    print(
        f"{notebook}: profile {chosen.name} | {provenance['device']} ({provenance['device_reason']}) | "
        f"{provenance['dtype']} | {provenance['threads']} threads ({provenance['threads_reason']})"
    )
    return run


@functools.cache
def choose_device():
    """`(torch.device, reason)`: the accelerator that torch finds (CUDA, XPU, MPS), else the CPU."""
    import torch

    if not torch.accelerator.is_available():
        return torch.device("cpu"), "no accelerator found"
    device = torch.accelerator.current_accelerator()
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type.upper()
    return device, f"torch.accelerator found {name}"


def choose_dtype(device, training: bool = False):
    """`(torch.dtype, reason)`: float32 for everything measured, but models of the hub profiles in bfloat16 on a device that has
    it (log-probs are float32 all the same); for training bfloat16 autocast where it is fast.

    A CPU without bfloat16 instructions computes it many times slower than float32, so its capabilities are asked, and whether
    torch uses AVX-512 there (`ATEN_CPU_CAPABILITY=avx2` forbids it).
    """
    import torch

    if not training and (device.type == "cpu" or not profiles.own_of()["hub"]):
        return torch.float32, "differences between log-probs are measured"
    if device.type == "cpu":
        found = [c for c in ("avx512_bf16", "amx_bf16") if torch.cpu.get_capabilities().get(c)]
        fast = bool(found) and torch.backends.cpu.get_cpu_capability() == "AVX512"
    else:
        found, fast = [device.type], device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if fast:
        return torch.bfloat16, f"{found[0]} has it"
    return torch.float32, f"no fast bfloat16 on this {device.type}"


@functools.cache
def choose_threads() -> tuple[int, str]:
    """`(threads, reason)`: `OMP_NUM_THREADS`, else the cores this process may use (affinity and container quota)."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked):  # none is no number of threads
        return int(asked), "OMP_NUM_THREADS"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max" and int(quota) / int(period) < cores:
            return max(1, math.ceil(int(quota) / int(period))), "the container's quota"
    except (OSError, ValueError):  # not Linux, or no quota file
        pass
    return cores, "the cores this process may use"


def set_threads() -> tuple[int, str]:
    """Give torch the number of threads `choose_threads` found, and return it with the reason."""
    import torch

    threads, reason = choose_threads()
    torch.set_num_threads(threads)
    return threads, reason


def return_memory() -> None:
    """Return to the system what was freed, before something large: glibc keeps it, in pieces (and reproduce.sh has it do so)."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def free_memory(device) -> float:
    """Bytes that can still be had on that device, in this container; infinite where nobody tells."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return math.inf
    found = [math.inf]
    with contextlib.suppress(OSError, ValueError, KeyError):  # not Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int({x.split(":")[0]: x.split()[1] for x in lines}["MemAvailable"]))
    with contextlib.suppress(OSError, ValueError, KeyError):  # no limit of the container's; what files fill of it can be had
        group = Path("/sys/fs/cgroup")
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(stat["file"])
        found.append(int((group / "memory.max").read_text()) - used)
    return min(found)


def seed_for(stream: str, base: int = 0) -> int:
    """Seed of a named random stream such as "train/head3": 32 bits of sha256, the same on every machine.

    Independent streams need different names, not seeds counted by hand. Never `hash()`, which differs per process.
    """
    return int.from_bytes(hashlib.sha256(f"{base}/{stream}".encode()).digest()[:4])


def environment() -> dict:
    """What a reader needs to judge a number: versions, device, threads, git, the sha256 of constraints.txt."""
    device, device_reason = choose_device()
    threads, threads_reason = set_threads()
    constraints = paths.ROOT / "constraints.txt"
    digest = hashlib.sha256(constraints.read_bytes()).hexdigest() if constraints.is_file() else "unknown"
    return {
        "git": git_state(),
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES},
        "constraints_sha256": digest,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "device_reason": device_reason,
        "dtype": str(choose_dtype(device)[0]).removeprefix("torch."),
        "threads": threads,
        "threads_reason": threads_reason,
    }


def git_state() -> dict | str:
    """`{"commit", "dirty"}` of the repository, or "unknown" (a tarball, no git, somebody else's repository around)."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(paths.ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != paths.ROOT:
            return "unknown"
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def progress(iterable: Iterable, description: str, total: int | None = None) -> Iterator:
    """`iterable` with a bar that shows the time left, also on the terminal of a run without a browser.

    A kernel's stderr ends in its notebook, so the runner names a file in `MTP_PROGRESS_FILE` and shows what is
    written there.
    """
    from tqdm import tqdm

    file = os.environ.get("MTP_PROGRESS_FILE")
    with open(file, "a", encoding="utf-8") if file else contextlib.nullcontext(sys.stderr) as stream:
        yield from tqdm(iterable, description, total, leave=False, file=stream, ncols=60, mininterval=0.5)
