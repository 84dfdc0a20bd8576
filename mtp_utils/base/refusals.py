"""How something is refused: in one line, which says what was asked, what there is, and what to do."""

import math
import re
import traceback


class CannotDo(ValueError):
    """What this model cannot do, however it is asked: a notebook leaves it out with its reason and goes on."""


def require(condition, message: str, kind: type[Exception] = ValueError) -> None:
    """Raise `kind(message)` unless the condition holds."""
    if not condition:
        raise kind(message)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, which is of this moment and not of the model: not every library has a class
    for it."""
    known = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    return known or bool(re.search("out of memory|allocate memory|ALLOC_FAILED", str(error)))


def first_line(error: BaseException) -> str:
    """`Class: first line` of somebody else's error, whose other lines are its own affair; where it says nothing, the line of code
    that it comes from."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = lines or [frame.line for frame in traceback.extract_tb(error.__traceback__)[-1:]]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def about(n: float) -> str:
    """A count as text: of large ones two digits, of those that no float holds the order of magnitude."""
    if n < 10**7:
        return f"{n:.0f}"
    return f"{float(n):.2g}" if n < 10**300 else f"1e{math.log10(n):.0f}"
