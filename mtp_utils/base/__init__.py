"""Where a run happens, how large it is, in how many processes, and how what it makes is stored: nothing here knows a model.

A notebook begins with `start`; `Run.measure` keeps a table under a key of everything it depends on (keys.py).
"""

from mtp_utils import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    profiles=("PROFILES", "Profile", "get_profile"),
    records=("Arrays",),
    refusals=("CannotDo",),
    run=("Run",),
    runtime=("progress", "seed_for", "start"),
)
