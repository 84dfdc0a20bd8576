"""Counted operations are those that torch counts while it trains."""

import dataclasses

import pytest
import torch
from tiny_models import VOCAB, tiny_backbone, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from mtp_utils.heads.features import FrozenFeatures
from mtp_utils.heads.heads import Heads
from mtp_utils.heads.operations import as_many_tokens, draft_operations, operations, pass_operations
from mtp_utils.heads.spec import HeadSpec
from mtp_utils.heads.together import Joint, Together, joint_losses
from mtp_utils.heads.training import Training, step_losses

SPECS = [HeadSpec(kind, unembedding=own, offsets=(2,)) for kind in ("residual", "block") for own in ("shared", "own")]
HOW = Joint(1e-3, 48, rest=0.0)


def features(name):
    backbone = tiny_backbone(name)
    backbone.model.set_attn_implementation("eager")  # whose products are all counted
    return FrozenFeatures(backbone, torch.randint(VOCAB, (4, 12), generator=torch.Generator().manual_seed(0)), (2,))


def counted(work) -> float:
    """Multiply-adds of what `work` does."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2


@pytest.mark.parametrize(("name", "of"), [("gpt_neox", 0), ("gpt_neox", 3), ("llama", 2)])
def test_the_operations_of_joint_and_of_frozen_training_are_those_that_are_done(name, of):
    f, spec = features(name), SPECS[of]
    for changes in ({}, {"ntp_weight": 0.0}, {"lora": 2}, {"rest": 1.0}):
        how = dataclasses.replace(HOW, **changes)
        together = Together(f.backbone, spec, how)
        together.heads._model[0].set_attn_implementation("eager")
        together.free(how.rest == 0)
        found = counted(lambda t=together, how=how: joint_losses(t, f, slice(0, 4), how, torch.Tensor.backward))
        assert operations(f.backbone, spec, how, 12) == pytest.approx(found, rel=0.12)
    heads, how = Heads(f.backbone, spec), Training(1e-3, 96, epochs=2)
    states = counted(lambda: f.states)
    step = counted(lambda: step_losses(heads, f, slice(0, 4), "data", torch.Tensor.backward))
    assert operations(f.backbone, spec, how, 12, text=48) == pytest.approx(states + 2 * step, rel=0.12)


@pytest.mark.parametrize("own", ["shared", "corrected", "copied"])
@pytest.mark.parametrize("changes", [{}, {"ntp_weight": 0.0}, {"lora": 2}, {"rest": 1.0}], ids=str)
def test_a_large_vocabularys_unembedding_is_counted_for_everyone_who_learns_through_it(own, changes):
    model = tiny_model("gpt_neox", torch.float32, vocab_size=3000)
    model.set_attn_implementation("eager")
    backbone = dataclasses.replace(tiny_backbone(), model=model.requires_grad_(False))
    f = FrozenFeatures(backbone, torch.randint(3000, (2, 24), generator=torch.Generator().manual_seed(0)), (2,))
    spec, how = HeadSpec("residual", unembedding=own, offsets=(2,)), dataclasses.replace(HOW, **changes)
    together = Together(backbone, spec, how)
    together.free(how.rest == 0)
    found = counted(lambda: joint_losses(together, f, slice(0, 2), how, torch.Tensor.backward))
    assert operations(backbone, spec, how, 24) == pytest.approx(found, rel=0.1)  # the last positions have no labels
    alone = counted(lambda: step_losses(Heads(backbone, spec), f, slice(0, 2), "data", torch.Tensor.backward))
    assert operations(backbone, spec, Training(1e-3, 48), 24) == pytest.approx(alone, rel=0.1)


OTHERS = HeadSpec("residual", "mix", offsets=(2, 3)), HeadSpec(unembedding="corrected", offsets=(2,))


@pytest.mark.parametrize("spec", [*SPECS, *OTHERS], ids=str)
def test_what_a_draft_adds_to_a_pass_is_what_is_done(spec):
    f = features("gpt_neox")
    f = FrozenFeatures(f.backbone, f.tokens, (0, 1, 2))
    heads, length = Heads(f.backbone, spec), f.tokens.shape[1]
    states = f.batch(slice(0, 4), heads.layers)

    @torch.no_grad()
    def drafts():
        return [heads.log_probs(k, h) for k, h in heads(states).items()]

    assert draft_operations(f.backbone, spec, length) * f.tokens.numel() == pytest.approx(counted(drafts), rel=0.05)
    whole = counted(lambda: f.backbone.model(f.tokens, use_cache=False))
    assert pass_operations(f.backbone, length) * f.tokens.numel() == pytest.approx(whole, rel=0.05)


def test_as_many_operations_are_as_many():
    backbone, spec, frozen = tiny_backbone(), SPECS[-1], Training(1e-3, 1, blocks=4)
    for text in (10**4, 10**7):  # in epochs over it, and in a part of it
        cost = operations(backbone, spec, Joint(1e-3, 10**5), 12)
        n = as_many_tokens(backbone, spec, frozen, 12, text, cost)
        found = operations(backbone, spec, dataclasses.replace(frozen, tokens=n), 12, text)
        assert found == pytest.approx(cost, rel=0.01) and n % 48 == 0
