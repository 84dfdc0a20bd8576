"""The runner: `python -m mtp_utils.reproduce smoke --only 01 02`. Words, plan, running, the book, publishing.

Only the standard library is imported before there is something to run: reproduce.sh asks `parse` whether the words it was
given exist before it installs anything.
"""

from mtp_utils import hand_on

__getattr__, __dir__, __all__ = hand_on(__name__, words=("parse",))
