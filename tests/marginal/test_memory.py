"""What an answer costs is what was asked of it, and draws are right with the digits that a device has."""

import subprocess
import sys
import time

import pytest
import torch
from tiny_models import SHAPE, VOCAB, tiny_model
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from mtp_utils.base import paths, runtime
from mtp_utils.marginal import answer, sampling
from mtp_utils.marginal.future import check_cost, future_log_probs
from mtp_utils.marginal.rows import Rows
from mtp_utils.marginal.sampling import inverse_cdf, uniforms

PEAK = """import resource, sys, torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from mtp_utils.marginal.future import future_log_probs
shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=4096)
model, length, n = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=32768, **shape)).eval(), *map(int, sys.argv[1:])
wanted = torch.zeros(1, length, dtype=torch.bool)
wanted[0, 5 : 5 + n] = True
f = future_log_probs(model, torch.randint(32768, (1, length)), 1, exact=True, positions=wanted)
assert f.rows.shape == (n, 32768) and f.at(wanted) is f.rows and f.captured_mass[wanted].eq(1).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_memory_does_not_grow_with_positions_that_are_not_wanted():
    def peak(length, n):
        run = [sys.executable, "-c", PEAK, str(length), str(n)]
        return int(subprocess.run(run, cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout)

    assert peak(4000, 1) - peak(64, 1) < 4000 * 32768 * 4 / 4  # of what the answers of every position would take


def test_what_does_not_fit_is_refused_with_its_size(monkeypatch):
    model, ids = tiny_model("gpt_neox"), torch.zeros(2, 9, dtype=torch.long)
    one = torch.zeros_like(ids, dtype=torch.bool)
    one[1, 4] = True
    monkeypatch.setattr(answer, "free_memory", lambda device: 500)  # bytes
    with pytest.raises(ValueError, match=r"18 positions over 7 tokens are 0.0 GB, and 0.0 GB are free: .*positions="):
        future_log_probs(model, ids, 2, top_k=2)
    f = future_log_probs(model, ids, 2, top_k=2, positions=one)
    with pytest.raises(ValueError, match=r"read .at\(positions\)"):
        f.log_probs  # noqa: B018
    assert f.at(one).shape == (1, VOCAB)
    assert runtime.free_memory(torch.device("cpu")) > 2**20


def test_the_answer_is_the_same_whole_and_by_position():
    model, ids = tiny_model("llama"), torch.randint(VOCAB, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    f = future_log_probs(model, ids, 2, exact=True, attention_mask=mask)
    some = (mask == 1) & (ids % 2 == 0)
    assert torch.equal(f.at(some), f.log_probs[some]) and torch.equal(f.rows, f.log_probs[mask == 1])
    assert (f.log_probs[mask == 0] == -torch.inf).all() and f.entropy[mask == 0].eq(0).all()
    with pytest.raises(ValueError, match="wanted positions alone"):
        f.at(torch.ones_like(mask))


def flat(vocab):
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE | dict(vocab_size=vocab, intermediate_size=16))).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    return model


def test_a_flat_distribution_is_refused_before_its_paths_are_listed():
    model, ids, seen = flat(3000), torch.zeros(1, 12, dtype=torch.long), []
    model.get_input_embeddings().register_forward_hook(lambda *x: seen.append(x[1][0].numel()))
    start = time.time()
    with pytest.raises(ValueError, match=r"max_paths=65536 paths .* do not hold mass=0.9 \(at least 8\d{6} are needed"):
        future_log_probs(model, ids, 3, mass=0.9)
    assert sum(seen) < 40_000 and time.time() - start < 60  # a text, the self-check, and beginnings for a position or two


def test_paths_by_mass_are_those_of_brute_force_where_few_are_allowed():
    model, ids = tiny_model("qwen3", torch.float32), torch.randint(VOCAB, (1, 9), generator=torch.Generator().manual_seed(0))
    free = future_log_probs(model, ids, 3, mass=0.7)
    most = int(free.num_candidates.max())
    bound = future_log_probs(model, ids, 3, mass=0.7, max_paths=most)
    assert torch.equal(free.log_probs, bound.log_probs)
    with pytest.raises(ValueError, match=f"max_paths={most - 1} paths"):
        future_log_probs(model, ids, 3, mass=0.7, max_paths=most - 1)


def test_costs_of_any_size_are_said_and_seeds_below_zero_are_seeds():
    model, ids = tiny_model("gpt_neox", max_position_embeddings=2000), torch.zeros(1, 3, dtype=torch.long)
    for offset, count in ((1100, "2[*][*]1099|1e331"), (100, "6.3e"), (20, "524288")):
        rows = Rows(model, ids, offset)
        with pytest.raises(ValueError, match=f"^{count}.* paths per position are above .* FLOPs"):
            check_cost(model, rows, 2, 0, 100)
    low, again = (future_log_probs(model, ids, 2, samples=4, seed=-3).rows for _ in range(2))
    assert torch.equal(low, again)


def test_draws_in_float32_are_unbiased_in_every_row(monkeypatch):
    """One row in a thousand: a sum over rows of one ascending sequence has no digits left for u."""
    monkeypatch.setattr(sampling, "precise", lambda device: torch.float32)
    rows, n = 20_000, 50
    p = torch.tensor([[0.5, 0.0, 2e-4, 0.4998, 0.0]]).repeat(rows, 1)
    u = uniforms([7], rows * n, 1, torch.device("cpu")).view(-1)
    assert u.dtype == torch.float32
    row = torch.arange(rows).repeat_interleave(n)
    token = inverse_cdf(p, row, u)
    late = row > rows // 2
    for some in (late, ~late):
        seen, expected = token[some].bincount(minlength=5).double(), p[0].double() * some.sum()
        assert seen[1] == seen[4] == 0
        there = expected > 0
        assert ((seen - expected)[there] ** 2 / expected[there]).sum() < 25  # chi-square, 2 degrees: 4 in a million
    alone = torch.searchsorted(p[0].cumsum(0) / p[0].sum(), u, right=True)
    assert torch.equal(token, alone)
    assert inverse_cdf(p, row[:1], torch.tensor([1 - 2**-24])).item() == 3


def test_the_sampled_marginal_in_float32_is_unbiased(monkeypatch):
    ids = torch.randint(VOCAB, (1, 5), generator=torch.Generator().manual_seed(0)).expand(3000, -1)
    model, last = tiny_model("gpt_neox"), torch.zeros(3000, 5, dtype=torch.bool)
    last[:, -1] = True
    exact = future_log_probs(model, ids[:1], 2, exact=True, positions=last[:1]).rows[0].exp()
    monkeypatch.setattr(sampling, "precise", lambda device: torch.float32)
    for mode in (dict(samples=3), dict(top_k=2, samples=2)):
        p = future_log_probs(model, ids, 2, positions=last, seed=2, **mode).rows.exp()
        assert ((p.mean(0) - exact) / (p.std(0) / 3000**0.5)).abs().max() < 5
