"""What ends a run with one line, and a folder that one process holds at a time."""

import contextlib
import fcntl
import os
import time
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


@contextlib.contextmanager
def in_turn(folder: Path) -> Iterator[bool]:
    """Hold a folder as soon as no other process does. Says whether it is held: where a file system has no locks it is not, and
    what is inside is done all the same."""
    with contextlib.ExitStack() as stack:
        held = False
        while not held:
            try:
                stack.enter_context(exclusive(folder))
                held = True
            except Stop as stop:
                if stop.code != BUSY:
                    break
                time.sleep(0.2)
        yield held
