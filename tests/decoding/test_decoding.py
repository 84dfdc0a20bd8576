"""Draft and verify gives what the base model alone gives, token by token and in distribution; what it counts is what happened."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from tiny_models import VOCAB, perturbed, tiny_backbone, tiny_model
from transformers import XLMConfig, XLMWithLMHeadModel

from mtp_utils.decoding.decode import draft_and_verify, greedy_decode
from mtp_utils.decoding.drafters import HeadDrafter, LookupDrafter, MarginalDrafter, MaskDrafter
from mtp_utils.decoding.rates import acceptance, mean_acceptance_length, speed_up
from mtp_utils.decoding.verify import tree_of
from mtp_utils.heads.heads import Heads
from mtp_utils.heads.spec import HeadSpec
from mtp_utils.marginal.masks import masked_log_probs

NAMES = ("gpt_neox", "llama", "gpt2", "opt", "qwen3")
NEW = 12
PROMPTS = [torch.tensor([3, 1, 4]), torch.tensor([2]), torch.tensor([5, 6, 2, 4, 3, 1, 6])]


class Scripted:
    """Drafts what is given, right or wrong by turns: candidate c of an offset is the right token in some of the passes."""

    layers, depth = (), 3

    def __init__(self, answers: list[list[int]], prompts: list[torch.Tensor]):
        self.rows = [[*p.tolist(), *a] for a, p in zip(answers, prompts, strict=True)]
        self.calls = 0

    def __call__(self, tokens, states, widths, memory):
        self.calls += 1
        found = torch.full((len(tokens), len(widths), max(widths)), -1)
        for row, seen in enumerate(tokens):
            for i, width in enumerate(widths):
                at = len(seen) + i
                right = self.rows[row][at] if at < len(self.rows[row]) else 0
                wrong = [v for v in range(VOCAB) if v != right][:width]
                place = (self.calls + i + row) % (width + 1)  # at `width` the right one is not among them
                found[row, i, :width] = torch.tensor([*wrong[:place], right, *wrong[place:]][:width])
        return found


def drafters(b, answers):
    """Every kind of drafter on this backbone."""
    return {
        "nothing": None,
        "scripted": Scripted(answers, PROMPTS),
        "residual": HeadDrafter(perturbed(Heads(b, HeadSpec("residual", "mix")))),
        "block": HeadDrafter(perturbed(Heads(b, HeadSpec("block", offsets=(3, 2))))),
        "two": HeadDrafter(Heads(b, HeadSpec("linear", offsets=(3,))), Heads(b, HeadSpec("linear", 1, offsets=(2,)))),
        "marginal": MarginalDrafter(b.model, {2: {"exact": True}, 3: {"top_k": 3}}),
        "masks": MaskDrafter(b.model),
        "lookup": LookupDrafter(),
    }


def test_masks_draft_what_their_outputs_say_and_nothing_where_positions_end():
    b = tiny_backbone(dtype=torch.float64)
    seen = PROMPTS[0].tolist()
    found = MaskDrafter(b.model, 2)([seen], None, (2, 1), {})
    says = masked_log_probs(b.model, PROMPTS[0][None, :-1], 3)  # the last token is the certain one
    assert found[0, 0].tolist() == says[2][-1].topk(2).indices.tolist()
    assert found[0, 1].tolist() == [int(says[3][-1].argmax()), -1]
    b.model.config.max_position_embeddings = len(seen) + 1
    assert (MaskDrafter(b.model, 2)([seen], None, (2, 1), {})[0, 1] == -1).all()
    b.model.config.max_position_embeddings = len(seen)
    assert (MaskDrafter(b.model, 2)([seen], None, (2, 1), {}) == -1).all()


@pytest.mark.parametrize("name", NAMES)
def test_greedy_output_is_that_of_one_token_at_a_time(name):
    b = tiny_backbone(name, dtype=torch.float64)
    answers = [greedy_decode(b.model, ids, NEW).tolist() for ids in PROMPTS]
    assert len({tuple(a) for a in answers}) > 1
    for kind, drafter in drafters(b, answers).items():
        trees = [None] if drafter is None or kind == "lookup" else [None, (2,), (3, 2)]
        for widths in trees:
            done = draft_and_verify(b.model, drafter, PROMPTS, NEW, widths)
            assert [x.tolist() for x in done.tokens] == answers, (kind, widths)
            for ids, answer in zip(PROMPTS, answers, strict=True):
                assert draft_and_verify(b.model, drafter, ids, NEW, widths).tokens[0].tolist() == answer, (kind, widths)
            if kind == "scripted":
                assert done.n_passes < NEW - 1 and done.passes["accepted"].any()


@pytest.mark.parametrize("name", ("gpt_neox", "llama"))
def test_the_end_of_text_ends_a_row_also_inside_a_draft(name):
    model = tiny_model(name)
    answers = [greedy_decode(model, ids, NEW).tolist() for ids in PROMPTS]
    for end in {answer[3] for answer in answers}:
        short = [greedy_decode(model, ids, NEW, end).tolist() for ids in PROMPTS]
        for widths in (None, (2, 2, 2)):
            done = draft_and_verify(model, Scripted(answers, PROMPTS), PROMPTS, NEW, widths, eos_token_id=end)
            assert [x.tolist() for x in done.tokens] == short
        assert any(len(x) < NEW for x in short)


@pytest.mark.parametrize("name", ("gpt_neox", "llama"))
def test_of_several_ends_whichever_comes_first_ends_a_row_as_in_generate(name):
    model, lengths = tiny_model(name), set()
    answers = [greedy_decode(model, ids, NEW).tolist() for ids in PROMPTS]
    for ends in ([answers[0][4], answers[0][2]], (answers[0][5], answers[1][3]), [VOCAB + 5], []):
        short = [greedy_decode(model, ids, NEW, ends).tolist() for ids in PROMPTS]
        done = draft_and_verify(model, Scripted(answers, PROMPTS), PROMPTS, NEW, (2, 2, 2), eos_token_id=ends)
        assert [x.tolist() for x in done.tokens] == short
        lengths |= set(map(len, short))
        for ids, expected in zip(PROMPTS, short, strict=True):
            given = {"attention_mask": torch.ones_like(ids[None]), "do_sample": False, "max_new_tokens": NEW}
            theirs = model.generate(ids[None], eos_token_id=list(ends) or [VOCAB + 5], pad_token_id=0, **given)
            assert theirs[0, len(ids) :].tolist() == expected
    assert min(lengths) < NEW and max(lengths) == NEW


@pytest.mark.parametrize("widths", (None, (2, 2), (4, 1, 1)))
@pytest.mark.parametrize("name", ("gpt_neox", "llama"))
def test_at_a_temperature_three_tokens_have_the_base_models_distribution(name, widths):
    """Chi-square over 343 outcomes (merged until 5 are expected in each); false alarms: one in a thousand for a seed, and the
    seed is fixed."""
    model, n, temperature, drawn = tiny_model(name), 4000, 0.7, np.zeros((VOCAB,) * 3)
    prompt = torch.tensor([3, 1, 4])

    def log_p(ids):
        return (model(torch.tensor([[3, 1, 4, *ids]]), use_cache=False).logits[0, -1] / temperature).softmax(-1).numpy()

    with torch.no_grad():
        expected = np.array(
            [log_p([])[a] * log_p([a])[b] * log_p([a, b]) for a, b in itertools.product(range(VOCAB), repeat=2)]
        ).reshape(-1)
    likely = [greedy_decode(model, prompt, 8).tolist()]
    for seed in range(4):
        rows = [prompt] * (n // 4)
        drafter = Scripted(likely * len(rows), rows)
        done = draft_and_verify(model, drafter, rows, 3, widths, temperature, seed=seed)
        for a, b, c in torch.stack(done.tokens).tolist():
            drawn[a, b, c] += 1
    assert done.passes["accepted"].any() and drawn.sum() == n
    order = np.argsort(expected)[::-1]
    whole = order[: int((expected[order] * n >= 5).sum())]
    rest = order[len(whole) :]
    counts = [*drawn.reshape(-1)[whole], drawn.reshape(-1)[rest].sum()]
    assert stats.chisquare(counts, [*(n * expected[whole]), n * expected[rest].sum()]).pvalue > 1e-3
    shifted = np.roll(counts[:-1], 1)  # the test can fail
    assert stats.chisquare(shifted, n * expected[whole] * (shifted.sum() / (n * expected[whole]).sum())).pvalue < 1e-3


@pytest.mark.parametrize("name", ("gpt_neox", "llama"))
def test_drawn_tokens_are_those_drawn_without_drafts_whatever_the_drafter_and_the_batch(name):
    b = tiny_backbone(name, dtype=torch.float64)
    seeds = [5, 6, 7]
    plain = [x.tolist() for x in draft_and_verify(b.model, None, PROMPTS, NEW, temperature=1.0, seed=seeds).tokens]
    other = [x.tolist() for x in draft_and_verify(b.model, None, PROMPTS, NEW, temperature=1.0, seed=[8, 9, 10]).tokens]
    assert plain != other and plain != [greedy_decode(b.model, ids, NEW).tolist() for ids in PROMPTS]
    for kind, drafter in drafters(b, plain).items():
        for widths in (None,) if drafter is None else (None, (2,), (3, 2)):
            done = draft_and_verify(b.model, drafter, PROMPTS, NEW, widths, 1.0, seed=seeds)
            assert [x.tolist() for x in done.tokens] == plain, (kind, widths)
            assert kind != "scripted" or done.passes["accepted"].any()
            alone = draft_and_verify(b.model, None, PROMPTS[1], NEW, temperature=1.0, seed=[6])
            assert alone.tokens[0].tolist() == plain[1]


def test_a_pass_in_which_the_text_ended_counts_in_no_rate_whether_its_end_was_drafted_or_not():
    model, prompt = tiny_model("llama"), torch.tensor([3, 1, 4])
    answer = greedy_decode(model, prompt, 9).tolist()
    end = answer[5]
    assert end not in answer[:5]

    class Drafts:  # right about every token, or about none
        layers, depth = (), 2

        def __init__(self, right):
            self.right = right

        def __call__(self, tokens, states, widths, memory):
            at = len(tokens[0]) - 3
            return torch.tensor([[[t if self.right else (t + 1) % VOCAB] for t in [*answer, 0, 0][at : at + len(widths)]]])

    for right in (True, False):
        done = draft_and_verify(model, Drafts(right), prompt, 9, eos_token_id=end)
        within = done.passes.groupby("number")["cut"].first().tolist()
        assert done.tokens[0].tolist() == answer[:6]
        assert within == ([False, True] if right else [False, False, False, True, True])  # the end is at most two ahead


@pytest.mark.parametrize("name", ("falcon_alibi", "gpt_neox"))
def test_a_model_that_does_not_hear_masks_and_positions_is_refused(name, monkeypatch):
    model = tiny_model(name)
    if name == "gpt_neox":  # one that hears them, made deaf
        run = model.gpt_neox.forward
        monkeypatch.setattr(model.gpt_neox, "forward", lambda *a, position_ids=None, **k: run(*a, **k))
    with pytest.raises(ValueError, match="does not serve drafts .*decode with generate"):
        draft_and_verify(model, LookupDrafter(), torch.tensor([1, 2, 3]), 4)


def test_the_rates_are_those_of_passes_counted_by_hand():
    model = tiny_model("gpt_neox")
    answers = [greedy_decode(model, ids, 20).tolist() for ids in PROMPTS]
    done = draft_and_verify(model, Scripted(answers, PROMPTS), PROMPTS, 20, (2, 1, 1))
    whole = done.passes[~done.passes["cut"]]
    assert len(whole) and done.passes["cut"].any() and whole["drafted"].all()
    found = acceptance(done.passes).set_index("offset")
    passes = whole.groupby(["row", "number"])
    assert found["a"].tolist() == [whole[whole.offset == k]["accepted"].sum() / len(passes) for k in (2, 3, 4)]
    assert np.isclose(mean_acceptance_length(done.passes), 1 + found["a"].sum())
    assert np.isclose(found["conditional"].prod(), found["a"].iloc[-1])
    some = pd.DataFrame(  # two passes, the second of which drafted offset 3 alone of those after 2
        [(0, 0, 2, True, True), (0, 0, 3, True, False), (0, 1, 2, True, False), (0, 1, 3, False, False), (0, 2, 2, True, True),
         (0, 2, 3, True, True)], columns=["row", "number", "offset", "drafted", "accepted"]
    ).assign(agrees=1.0, cut=False)  # fmt: skip
    assert acceptance(some)["conditional"].tolist() == [2 / 3, 1 / 2] and acceptance(some)["a"].tolist() == [2 / 3, 1 / 2]
    for row, answer in enumerate(answers):  # the tokens of a row are its first, and those of its passes
        part = done.passes[done.passes.row == row]
        assert 1 + part["number"].nunique() + part["accepted"].sum() >= len(answer)
        certain = 1 + part[part.number < part.number.max()].groupby("number")["accepted"].sum().add(1).sum()
        assert certain < len(answer)


def test_what_agrees_is_the_first_candidate_with_what_was_decoded_there():
    model, prompt = tiny_model("llama"), torch.tensor([3, 1, 4])
    answer = greedy_decode(model, prompt, 9).tolist()

    class Second:  # the first draft is always wrong, the second always right
        layers, depth = (), 2

        def __call__(self, tokens, states, widths, memory):
            at = len(tokens[0]) - 3
            later = [*answer, 0, 0][at : at + 2]
            return torch.tensor([[[(later[0] + 1) % VOCAB], [later[1]]]])[:, : len(widths)]

    found = acceptance(draft_and_verify(model, Second(), prompt, 9).passes).set_index("offset")
    assert found["a"].tolist() == [0, 0] and found["stand_alone"].tolist() == [0, 1]


def test_a_drafter_without_an_idea_costs_plain_passes_and_no_rate():
    class Silent:
        layers, depth = (), 2

        def __call__(self, tokens, states, widths, memory):
            return torch.full((len(tokens), len(widths), 1), -1)

    model, prompt = tiny_model("gpt_neox"), torch.tensor([3, 1, 4])
    done = draft_and_verify(model, Silent(), prompt, 6)
    assert done.n_passes == 5 and len(acceptance(done.passes)) == 0 and mean_acceptance_length(done.passes) == 1
    assert done.tokens[0].tolist() == greedy_decode(model, prompt, 6).tolist()


def test_lookup_offers_what_followed_the_longest_match_last_time():
    found = LookupDrafter(3, 2)([[1, 2, 3, 4, 1, 2, 5, 6, 0, 1, 2], [1, 2, 3]], None, (1, 1, 1), {})
    assert found[..., 0].tolist() == [[5, 6, 0], [-1, -1, -1]]


def test_trees_hold_every_candidate_after_every_one_before():
    tree = tree_of((2, 3))
    assert tree.depth == [0, 1, 1, *[2] * 6] and tree.choice == [0, 0, 1, 0, 1, 2, 0, 1, 2]
    assert tree.sees[4].nonzero()[:, 0].tolist() == [0, 1, 4] and tree.sees[8].nonzero()[:, 0].tolist() == [0, 2, 8]
    assert tree.follow([0, 5, 6, 1, 2, 3, 1, 2, 3], [6, 0, 3, *[0] * 6]) == [0, 2, 8]
    assert tree_of(()).depth == [0]


@pytest.mark.parametrize("kind", ("block", "residual"))
def test_heads_draft_from_their_memory_what_they_would_from_the_whole_text(kind):
    b = tiny_backbone("llama", dtype=torch.float64)
    heads, seen = perturbed(Heads(b, HeadSpec(kind, "concat", offsets=(2, 3)))), []

    class Checked(HeadDrafter):
        def __call__(self, tokens, states, widths, memory):
            found = super().__call__(tokens, states, widths, memory)
            for row, drafts in zip(tokens, found, strict=True):
                out = b.model(torch.tensor([row[:-1]]), output_hidden_states=True, use_cache=False).hidden_states
                whole = heads(torch.stack([out[layer] for layer in heads.layers], 2))
                best = [heads.log_probs(k, whole[k][0, -1]).topk(2).indices.tolist() for k in (2, 3)][: len(widths)]
                seen.append(drafts.tolist() == best)
            return found

    with torch.no_grad():
        draft_and_verify(b.model, Checked(heads), PROMPTS[:1], NEW, (2, 2))
    assert len(seen) > 3 and all(seen)


def test_a_model_whose_own_assertion_fails_is_refused_in_words():
    model = XLMWithLMHeadModel(XLMConfig(vocab_size=9, emb_dim=16, n_layers=2, n_heads=2, causal=True)).eval()
    with pytest.raises(ValueError, match="XLMWithLMHeadModel: its cache cannot be rolled back.*decode with generate"):
        draft_and_verify(model, LookupDrafter(), torch.randint(5, 9, (10,)), 4)


def test_what_cannot_be_decoded_is_refused_by_name():
    model, ids = tiny_model("gpt_neox"), torch.tensor([1, 2, 3])
    b = tiny_backbone()
    for match, call in {
        "are more than the model's 32 positions": lambda: draft_and_verify(model, None, torch.ones(30, dtype=torch.int64), 3),
        "are more than the model's 32": lambda: greedy_decode(model, torch.ones(40, dtype=torch.int64), 3),
        "at least|>= 1 token": lambda: draft_and_verify(model, None, torch.tensor([], dtype=torch.int64), 3),
        "max_new_tokens=0": lambda: draft_and_verify(model, None, ids, 0),
        r"must be in \[0, 7\)": lambda: draft_and_verify(model, None, torch.tensor([9]), 1),
        "the drafter drafts 3": lambda: draft_and_verify(model, LookupDrafter(3), ids, 3, (1, 1, 1, 1)),
        r"integers in \[1, 7\]": lambda: draft_and_verify(model, LookupDrafter(3), ids, 3, (0,)),
        r"widths=\(1.5,": lambda: draft_and_verify(model, LookupDrafter(3), ids, 3, (1.5, 1)),
        r"widths=\(8,": lambda: draft_and_verify(model, LookupDrafter(3), ids, 3, 8),
        "of another model": lambda: draft_and_verify(model, HeadDrafter(Heads(b, HeadSpec())), ids, 3),
        "takes Heads": lambda: HeadDrafter([Heads(b, HeadSpec())]),
        "different models": lambda: HeadDrafter(Heads(b, HeadSpec()), Heads(tiny_backbone(), HeadSpec())),
        "must be tensors": lambda: draft_and_verify(model, None, [1, 2], 3),
        "must be tensors .*str": lambda: draft_and_verify(model, None, "def f", 3),
        "of a Backbone, .model": lambda: draft_and_verify(b, None, ids, 3),
        "1 of them for 2 rows": lambda: draft_and_verify(model, None, [ids, ids], 3, temperature=1.0, seed=[1]),
        "eos_token_id=": lambda: draft_and_verify(model, None, ids, 3, eos_token_id=["0"]),
        "temperature=-1": lambda: draft_and_verify(model, None, ids, 3, temperature=-1),
        "heads of offsets": lambda: HeadDrafter(Heads(b, HeadSpec(offsets=(3,)))),
        "estimators of offsets": lambda: MarginalDrafter(model, {3: {"exact": True}}),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()


def test_an_empty_table_of_passes_has_its_columns():
    done = draft_and_verify(tiny_model("gpt_neox"), None, torch.tensor([1, 2]), 2)
    assert isinstance(done.passes, pd.DataFrame) and "offset" in done.passes and done.n_passes == 1
    assert speed_up(2.0, 1.5, 0.5, 1.0) == 1.0


def test_padding_is_not_read_as_text_where_a_mask_says_what_it_is():
    model, rows = tiny_model("llama"), [torch.tensor([3, 1, 4]), torch.tensor([1, 5, 2, 6, 5])]
    padded, mask = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64)
    for i, row in enumerate(rows):
        padded[i, -len(row) :], mask[i, -len(row) :] = row, 1
    alone = draft_and_verify(model, LookupDrafter(), rows, 8).tokens
    together = draft_and_verify(model, LookupDrafter(), padded, 8, attention_mask=mask).tokens
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    with pytest.raises(ValueError, match="attention_mask must have the shape of ids"):
        draft_and_verify(model, LookupDrafter(), padded, 8, attention_mask=mask[:, 1:])


def test_logits_that_are_not_finite_are_refused_and_not_decoded():
    model = tiny_model("gpt_neox")
    draft_and_verify(model, None, torch.tensor([1, 2]), 2)  # a sound one, whose attention has been looked at
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        draft_and_verify(model, None, torch.tensor([1, 2]), 2)
