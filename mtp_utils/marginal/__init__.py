"""The marginal: the token k ahead with the tokens between summed out. The heart of the project.

future.py is the API; expansion.py, mass.py and sampling.py choose the paths; packed.py and attention.py compute them in few
passes, expanded.py on each position's repeated cache, and reference.py slowly and obviously, as their test. masks.py is the
training-free rival, which sums nothing out.
"""

from mtp_utils import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    answer=("FutureLogProbs",),
    future=("future_log_probs", "future_tokens"),
    masks=("masked_log_probs",),
)
