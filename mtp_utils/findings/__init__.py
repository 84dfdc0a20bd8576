"""Findings: measure -> table -> verdict, by finding. A measuring function takes a backbone and token blocks and returns a table.

measures, stored and controls serve C1 and C2; arms, gaps, layers and frozen_heads C3; joint_heads C4; speed and drafts draft and
verify. What decides each claim stands in claims.py.
"""

from mtp_utils import hand_on

__getattr__, __dir__, __all__ = hand_on(__name__, claims=("CONTRASTS", "Contrast", "Verdict", "decided"))
