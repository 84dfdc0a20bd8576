"""A backbone in four bits: every weight is where Q4_1 puts it, and the backbone it is made from stays as it was."""

import numpy as np
import torch

from mtp_utils.backbones.four_bits import BLOCK, in_four_bits
from mtp_utils.backbones.load import load_backbone


def test_matrices_are_rounded_by_blocks_to_sixteen_levels_and_the_rest_stays():
    whole = load_backbone("ladder/w64", device="cpu")
    before = {name: x.clone() for name, x in whole.model.named_parameters()}
    rounded = in_four_bits(whole)
    assert rounded.name == "ladder/w64 in four bits" and rounded.fingerprint != whole.fingerprint
    for name, x in rounded.model.named_parameters():
        old = before[name]
        assert torch.equal(dict(whole.model.named_parameters())[name], old)
        if x.ndim < 2:
            assert torch.equal(x, old)
        elif "embed" in name or "lm_head" in name:  # eight bits
            assert 0 < (x - old).norm() < 0.01 * old.norm()
        else:
            blocks, exact = (y.reshape(-1, BLOCK).numpy() for y in (x, old))
            low, step = exact.min(1, keepdims=True), np.ptp(exact, axis=1, keepdims=True) / 15
            by_hand = low + np.round((exact - low) / step) * step
            assert max(len(np.unique(b)) for b in blocks) <= 16
            assert np.abs(blocks - by_hand).max() < 1.1 * step.max() and np.abs(blocks - by_hand).mean() < 0.05 * step.mean()
