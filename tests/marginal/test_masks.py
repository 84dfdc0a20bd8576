"""The training-free rival: what is read where, and of what."""

import pytest
import torch

from mtp_utils.backbones.load import load_backbone
from mtp_utils.base.refusals import CannotDo
from mtp_utils.marginal.masks import masked_log_probs


@pytest.fixture(scope="module")
def model():
    return load_backbone("ladder/w16", device="cpu").model


def test_behind_one_token_repeated_a_mask_is_that_token_once_more(model):
    ids = torch.full((1, 6), 37)
    found = masked_log_probs(model, ids, 4)
    with torch.no_grad():
        plain = model(input_ids=torch.full((1, 9), 37)).logits[0].log_softmax(-1)
    for k in (2, 3, 4):  # position t and k - 1 masks: the output at t + k - 1
        assert found[k].shape == (6, plain.shape[1])
        assert torch.allclose(found[k], plain[k - 1 : k + 5], atol=1e-4)


def test_a_row_is_its_own_whatever_is_padded_and_only_wanted_positions_are_answered(model):
    torch.manual_seed(0)
    ids = torch.randint(5, 900, (2, 12))
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.int64), ids], 1)
    mask = torch.cat([torch.zeros(2, 3), torch.ones(2, 12)], 1)
    wanted = torch.zeros_like(padded, dtype=torch.bool)
    wanted[0, 14] = wanted[1, 8] = True
    found = masked_log_probs(model, padded, 3, attention_mask=mask, positions=wanted)
    last, inside = masked_log_probs(model, ids[:1], 3), masked_log_probs(model, ids[1:, :6], 3)
    for k in (2, 3):
        assert torch.allclose(found[k], torch.stack([last[k][-1], inside[k][-1]]), atol=1e-5)
        assert torch.allclose(found[k].exp().sum(-1), torch.ones(2), atol=1e-5)
    assert not torch.allclose(found[2], found[3], atol=1e-2)


def test_a_model_that_reads_tokens_alone_is_refused_and_arguments_are_those_of_the_marginal(model, monkeypatch):
    with pytest.raises(ValueError, match="horizon must be an integer >= 1"):
        masked_log_probs(model, torch.ones(1, 4, dtype=torch.int64), 0)
    with pytest.raises(ValueError, match="horizon=1: masks stand for tokens between"):
        masked_log_probs(model, torch.ones(1, 4, dtype=torch.int64), 1)
    monkeypatch.setattr(type(model), "forward", lambda self, input_ids: None)
    with pytest.raises(CannotDo, match="takes no embeddings"):
        masked_log_probs(model, torch.ones(1, 4, dtype=torch.int64), 2)
