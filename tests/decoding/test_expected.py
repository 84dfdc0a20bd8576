"""What drafts could reach is what they do reach: against decoding, and against sums written out."""

import itertools

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from mtp_utils.decoding import LookupDrafter, draft_and_verify, expected, expected_acceptance
from mtp_utils.decoding.rates import acceptance, mean_acceptance_length, speed_up


class Guesses:
    """Candidates that depend on the last two tokens alone, often right for a model that repeats itself."""

    layers, depth = (), 3

    def __call__(self, tokens, states, widths, memory):
        found = torch.full((len(tokens), len(widths), max(widths)), -1)
        for row, seen in enumerate(tokens):
            for i, n in enumerate(widths):
                found[row, i, :n] = torch.tensor([(seen[-1] + seen[-2] * i + c) % 7 for c in range(n)])
        return found


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    shape = {"vocab_size": 7, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**shape, initializer_range=0.5)).double().eval().requires_grad_(False)


PROMPTS = [torch.tensor([3, 1, 4, 1, 2]), torch.tensor([2, 2, 5]), torch.tensor([6, 0, 1, 6, 0, 1, 6])]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("widths", [(1, 1, 1), (3, 2, 1), (4, 1)])
def test_what_is_simulated_on_the_models_text_is_what_decoding_takes(model, widths, temperature):
    given = {"temperature": temperature, "seed": [1, 2, 3]}
    drafter = Guesses()
    drafter.depth = len(widths)
    tokens, ranks = expected.offered(model, drafter, PROMPTS, 40, width=4, **given)
    done = draft_and_verify(model, drafter, PROMPTS, 40, widths, **given)
    assert [x.tolist() for x in tokens] == [x.tolist() for x in done.tokens]
    whole = done.passes[~done.passes["cut"]]
    taken = [part.groupby("number")["accepted"].sum().tolist() for _, part in whole.groupby("row")]
    ours = [x.tolist() for x in expected.simulated(ranks, expected.tree(widths))]
    assert ours == taken and sum(map(len, taken)) > 20
    assert sum(map(sum, taken)) > 0
    mean = sum(map(sum, taken)) / sum(map(len, taken))
    assert 1 + mean == pytest.approx(mean_acceptance_length(done.passes))


def test_prompt_lookup_is_heard_too_and_the_end_of_a_text_cuts(model):
    tokens, ranks = expected.offered(model, LookupDrafter(2), PROMPTS, 30, width=2, eos_token_id=5)
    done = draft_and_verify(model, LookupDrafter(2), PROMPTS, 30, eos_token_id=5)
    whole = done.passes[~done.passes["cut"]]
    taken = [whole[whole.row == r].groupby("number")["accepted"].sum().tolist() for r in range(3)]
    ours = [x.tolist() for x in expected.simulated(ranks, expected.tree((1, 1)))]
    assert ours == taken
    for new, found in zip(tokens, ranks, strict=True):
        assert len(found) == max(0, len(new) - 3) and 5 not in new[:-1].tolist()


def test_the_best_tree_brings_as_much_as_any_of_its_size():
    ranks = torch.randint(0, 3, (60, 3), generator=torch.Generator().manual_seed(0)).clamp(max=2)
    every = sorted(expected.tree((2, 2, 2)))
    best = expected.best_tree(ranks, 4, width=2)
    assert len(best) == 4 and all(node[:-1] in best or len(node) == 1 for node in best)
    trees = (set(t) for t in itertools.combinations(every, 4) if all(len(n) == 1 or n[:-1] in t for n in t))
    most = max(float(expected.accepted(ranks, t).double().mean()) for t in trees)
    assert float(expected.accepted(ranks, best).double().mean()) == pytest.approx(most)
    assert expected.accepted(ranks, set()).tolist() == [0] * 60


def test_a_drawn_chains_acceptance_is_the_sum_over_all_it_can_be():
    generator = torch.Generator().manual_seed(1)
    V, n = 3, 40_000
    p2, q2, q3 = torch.rand(3, V, generator=generator).softmax(-1).log()
    p3 = (3 * torch.rand(V, V, generator=generator)).softmax(-1).log()  # after each token of offset 2
    w2 = torch.multinomial(p2.exp(), n, replacement=True, generator=generator)
    w3 = torch.multinomial(p3[w2].exp(), 1, generator=generator)[:, 0]
    log_p, log_q = torch.stack([p2.expand(n, V), p3[w2]], 1), torch.stack([q2, q3]).expand(n, 2, V)
    found = expected_acceptance(log_p, log_q, torch.stack([w2, w3], 1))
    kept = torch.minimum(p2, q2).exp()  # chance that w is drafted at offset 2 and stays
    full = [kept.sum(), sum(kept[w] * torch.minimum(p3[w], q3).exp().sum() for w in range(V))]
    error = found.std(0) / n**0.5
    assert ((found.mean(0) - torch.stack(full)).abs() < 4 * error + 1e-6).all() and error[1] > 0
    own = expected_acceptance(log_p, log_p, torch.stack([w2, w3], 1))
    assert torch.allclose(own, torch.ones_like(own))
    with pytest.raises(ValueError, match=r"log_p \(4, 3\).*\(positions, depth, vocab\)"):
        expected_acceptance(log_p[:4, 0], log_q[:4, 0], w2[:4])


def test_a_pass_costs_more_only_behind_the_ridge():
    assert expected.break_even(2.0, nodes=3, batch=1, ridge=100) == 2.0 == speed_up(2.0, 1.0, 0.0, 1.0)
    assert expected.break_even(2.0, nodes=3, batch=1000, ridge=100) == pytest.approx(0.5)
    assert expected.break_even(2.0, nodes=3, batch=50, ridge=100) == pytest.approx(1.0)
    assert expected.break_even(2.0, nodes=0, batch=1, ridge=100, draft=1.0) == 1.0


def test_the_rates_of_decoding_and_of_listening_are_the_same(model):
    done = draft_and_verify(model, Guesses(), PROMPTS, 60, (2, 1, 1))
    by_offset = acceptance(done.passes).set_index("offset")["a"]
    _, ranks = expected.offered(model, Guesses(), PROMPTS, 60, width=2)
    taken = torch.cat(expected.simulated(ranks, expected.tree((2, 1, 1))))
    for k in (2, 3, 4):
        assert float((taken >= k - 1).double().mean()) == pytest.approx(by_offset[k], abs=0.05)
