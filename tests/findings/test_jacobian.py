"""The Jacobian lens against derivatives written out."""

import numpy as np
import pytest
import torch

from mtp_utils.backbones.load import load_backbone
from mtp_utils.base.records import Arrays
from mtp_utils.base.refusals import CannotDo
from mtp_utils.findings import head_measures, jacobian
from mtp_utils.heads.features import FrozenFeatures
from mtp_utils.text import blocks


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("ladder/w16", device="cpu")


@pytest.fixture(scope="module")
def tokens(backbone):
    return FrozenFeatures(backbone, torch.randint(5, 900, (4, 12), generator=torch.Generator().manual_seed(0)), (0,))


def written_out(model, ids: torch.Tensor, layer: int, k: int) -> torch.Tensor:
    """The mean over t of d h_L(t + k - 1) / d h_l(t), each derivative by its own backward pass."""
    with torch.enable_grad():
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        states = model.base_model(inputs_embeds=embedded, output_hidden_states=True).hidden_states
        total, n = torch.zeros(16, 16), 0
        for row in range(len(ids)):
            for t in range(ids.shape[1] - k + 1):
                for i in range(16):
                    (g,) = torch.autograd.grad(states[-1][row, t + k - 1, i], states[layer], retain_graph=True)
                    total[i] += g[row, t]
                n += 1
    return total / n


@pytest.fixture(scope="module")
def drawn(tokens):
    return [jacobian.jacobians(tokens, (1, 2, 3), seed=s) for s in range(80)]


@pytest.mark.parametrize(("layer", "k"), [(0, 1), (0, 2), (1, 2), (1, 3)])
def test_the_mean_over_draws_of_signs_is_the_mean_of_the_derivatives(backbone, tokens, drawn, layer, k):
    draws = [found[f"jacobian.{k}"][layer] for found in drawn]
    draws, true = torch.from_numpy(np.stack(draws)).float(), written_out(backbone.model, tokens.tokens, layer, k)
    error = draws.std(0) / len(draws) ** 0.5
    z = (draws.mean(0) - true).abs() / error.clamp_min(1e-6)
    assert (z < 4.5).float().mean() > 0.99 and true.abs().max() > 5 * error.median()
    wrong = written_out(backbone.model, tokens.tokens, layer, k + 1)
    assert ((draws.mean(0) - wrong).abs() / error.clamp_min(1e-6) > 4.5).float().mean() > 0.1


def test_the_last_layer_is_itself_and_says_nothing_of_later_tokens(backbone, tokens):
    found = jacobian.jacobians(tokens, (1, 2))
    assert torch.allclose(torch.from_numpy(found["jacobian.1"][-1]).float(), torch.eye(16), atol=1e-5)
    assert abs(found["jacobian.2"][-1]).max() < 0.5 and abs(found["jacobian.2"][-2]).max() > 0


def test_of_the_last_layer_it_is_the_models_own_answer_to_the_next_token(backbone):
    text = blocks.evaluation_blocks("prose", "test", backbone.tokenizer, n_documents=6, positions_per_document=2, horizon=2)
    exact = jacobian.jacobians(FrozenFeatures(backbone, text.tokens[:2, :64], (0,)), (1, 2))
    found = jacobian.jacobian_arrays(backbone, text, Arrays(exact, ""), (1, 2))
    lens = head_measures.lens_arrays(backbone, text, (1, 2))
    assert found["log_prob.1"][-1] == pytest.approx(lens["log_prob.1"][-1], abs=1e-3)
    assert found["log_prob.2"].shape == lens["log_prob.2"].shape and abs(found["log_prob.2"] - lens["log_prob.2"]).max() > 0.1
    ahead = jacobian.jacobian_arrays(backbone, text, Arrays(exact | {"jacobian.1": 0 * exact["jacobian.1"]}, ""), (1,))
    assert len(set(ahead["log_prob.1"][:, 0].round(5))) == 1  # a layer that moves nothing: the mean state, whatever the layer


def test_what_would_take_too_long_is_refused_in_one_line(tokens, monkeypatch):
    monkeypatch.setitem(jacobian.WORK, "cpu", 1e3)
    with pytest.raises(CannotDo, match="16 backward passes over 1,024 tokens .* take too long here"):
        jacobian.jacobians(tokens, (1,))
