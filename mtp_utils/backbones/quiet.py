"""transformers without its bars, tables and advice: what matters is said in one line."""

import contextlib
import io
from collections.abc import Iterator

from transformers.utils import logging


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers says nothing of its own, and what is written to stderr is dropped."""
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the bar of its GGUF reader heeds no setting
            yield
    finally:
        logging.set_verbosity(before)
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
