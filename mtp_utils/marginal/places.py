"""Where tokens stand, as their model counts positions."""

import torch

from ..backbones.anatomy import padding_counted


class Places:
    """Positions behind those of ids (rows, n): from 0 on, or, where the model does, from its padding token's number on with
    that token left out."""

    def __init__(self, model, ids):
        self.padding = padding_counted(model)
        self.counted = None if self.padding is None else (ids != self.padding).cumsum(1)

    def behind(self, rows, t, path):
        """Positions (n, m) of the tokens of paths (n, m) that follow position t (n,) of row rows (n,)."""
        if self.padding is None:
            return t[:, None] + torch.arange(1, path.shape[1] + 1, device=t.device)
        there = path != self.padding
        return (self.counted[rows, t][:, None] + there.cumsum(1)) * there + self.padding
