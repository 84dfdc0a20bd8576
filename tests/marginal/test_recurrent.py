"""Models that remember in states, not in keys: padding and other rows of a batch change nothing that is said of a row."""

import warnings

import pytest
import torch
from tiny_models import RECURRENT, tiny_model

from mtp_utils.marginal.future import future_log_probs

ROWS = [[3, 1, 4], [2, 6, 5, 3, 5, 1], [5]]


@pytest.mark.parametrize("offset", (1, 2))
@pytest.mark.parametrize("name", RECURRENT)
def test_a_left_padded_batch_says_what_each_row_alone_does(name, offset):
    model = tiny_model(name, torch.float32)
    ids, mask = torch.zeros(3, 6, dtype=torch.int64), torch.zeros(3, 6, dtype=torch.int64)
    for i, row in enumerate(ROWS):
        ids[i, -len(row) :], mask[i, -len(row) :] = torch.tensor(row), 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slow
        found = future_log_probs(model, ids, offset, exact=True, attention_mask=mask).log_probs
    for i, row in enumerate(ROWS):
        for t in range(len(row)):
            with torch.no_grad():
                right = 0.0
                for first in [[]] if offset == 1 else [[v] for v in range(7)]:
                    p = model(torch.tensor([row[: t + 1] + first]), use_cache=False).logits[0].softmax(-1)
                    right = right + p[-1] * (p[-2, first[0]] if first else 1.0)
            assert torch.allclose(found[i, t - len(row)].exp(), right, atol=1e-5), (i, t)
