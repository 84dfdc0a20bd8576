"""What ends a run with one line, and a folder that one process holds at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

BUSY = 3  # exit code


class Stop(Exception):
    """Ends the run with one line and an exit code."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; Stop if another one holds it, or if there are no locks. Ends with the process, however it
    ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise Stop(f"process {lock.read().strip() or '?'} is already writing to {folder}", BUSY) from None
        except OSError as error:
            where = f"{folder} lies on a file system without file locks ({error.strerror})"
            raise Stop(f"{where}: set MTP_BUILD to a folder on a local disk") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
