"""Findings: measure -> table -> verdict, by finding.

measured:   measures controls (marginal), head_measures (heads), speed (drafts), said (the explorer); scoring counting
arranged:   stored (what is measured once), arms (heads tuned and trained alike), layers jacobian (read-outs of one layer)
            layer_readings (03), frozen_heads (04), joint_heads (05), drafts (06)
tables:     marginal_tables (01, 02), gaps (03 to 05), joint_tables (05), speed_tables (06); metrics means: intervals; adjusted:
            where the marginal is asked at few positions
decided:    claims (the contrasts), marginal_claims (C1, C2 size), kinds (C2 data), head_claims (C3, C4)
"""

from mtp_utils import hand_on

__getattr__, __dir__, __all__ = hand_on(__name__, claims=("CONTRASTS", "Contrast", "Verdict", "decided"))
