"""Drawing: a table in, a figure out, its title the finding; and the page on which a text can be looked at token by token.

Nothing here reads a model or writes a file, but for `explore`, which asks a backbone about a text.
"""

from mtp_utils import hand_on

__getattr__, __dir__, __all__ = hand_on(__name__, explorer=("explore", "explore_page"))
