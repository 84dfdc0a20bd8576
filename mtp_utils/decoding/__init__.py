"""Draft and verify: several tokens a pass of the base model, and the same output as one at a time.

decode.py is the loop, verify.py one pass over a tree of drafts, checks.py whether a model serves it, drafters.py what drafts;
rates.py what of it is accepted, expected.py what could be, without decoding.
"""

from mtp_utils import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    decode=("Decoded", "draft_and_verify", "greedy_decode"),
    drafters=("HeadDrafter", "LookupDrafter", "MarginalDrafter", "MaskDrafter"),
    expected=("best_tree", "break_even", "expected_acceptance", "offered", "simulated", "tree"),
    rates=("acceptance", "mean_acceptance_length", "speed_up"),
)
