"""On which models drafts can be verified is found by trying; there it is right beyond any window, elsewhere refused in a line."""

import numpy as np
import pytest
import torch
from test_decoding import Scripted
from tiny_models import RECURRENT, WINDOWED, tiny_model

from mtp_utils.base.refusals import CannotDo
from mtp_utils.decoding import checks, verify
from mtp_utils.decoding.decode import draft_and_verify, greedy_decode
from mtp_utils.decoding.drafters import LookupDrafter, MarginalDrafter

IDS = torch.tensor([3, 1, 4])
LONG = [torch.tensor([3, 1, 4, 1, 5, 6, 2, 6, 5, 3, 5, 4]), torch.tensor([2]), torch.tensor([5, 6, 2, 4, 3, 1, 6])]


@pytest.mark.parametrize("name", RECURRENT)
def test_a_cache_that_cannot_be_rolled_back_is_found_and_refused_in_a_line_and_the_model_is_as_before(name):
    model = tiny_model(name, torch.float32).train()
    before, out = {n: x.clone() for n, x in model.state_dict().items()}, greedy_decode(model, IDS, 5)
    state = torch.get_rng_state()
    for _ in range(2):
        with pytest.raises(CannotDo, match="its cache cannot be rolled back.*decode with generate$") as refused:
            draft_and_verify(model, LookupDrafter(), [IDS, IDS[:2]], 4)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 250
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    assert model.training and torch.equal(torch.get_rng_state(), state) and torch.equal(greedy_decode(model, IDS, 5), out)


def test_too_little_memory_or_an_interrupt_in_the_look_is_not_remembered_of_the_model(monkeypatch):
    model = tiny_model("llama")
    errors = [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
    for error in [*errors, MemoryError(), KeyboardInterrupt()]:
        with monkeypatch.context() as patch:

            def fails(*_, error=error):
                raise error

            patch.setattr(checks, "_heard_wrong", fails)
            with pytest.raises(type(error)):
                draft_and_verify(model, None, IDS, 4)
    assert draft_and_verify(model, None, IDS, 4).tokens[0].tolist() == greedy_decode(model, IDS, 4).tolist()


@pytest.mark.parametrize("name", WINDOWED)
def test_beyond_a_window_the_tokens_are_those_of_generate_whatever_tree_drafts_them(name):
    dtype = torch.float32 if name == "gpt_oss" else torch.float64  # whose experts know no float64
    model = tiny_model(name, dtype, max_position_embeddings=64)
    answers, options = [], {"do_sample": False, "max_new_tokens": 20, "eos_token_id": None}
    for ids in LONG:
        answers.append(model.generate(ids[None], attention_mask=torch.ones(1, len(ids)), **options)[0, len(ids) :].tolist())
    assert answers == [greedy_decode(model, ids, 20).tolist() for ids in LONG] and len({tuple(a) for a in answers}) == 3
    drawn = [x.tolist() for x in draft_and_verify(model, None, LONG, 20, temperature=1.0).tokens]
    for temperature, right in ((0.0, answers), (1.0, drawn)):
        for widths in (None, (3, 2, 1)):
            done = draft_and_verify(model, Scripted(right, LONG), LONG, 20, widths, temperature)
            assert [x.tolist() for x in done.tokens] == right and done.passes["accepted"].any(), (temperature, widths)
        alone = draft_and_verify(model, Scripted(right, LONG), LONG[0], 20, (3, 2, 1), temperature, seed=[[0, 0]])
        assert alone.tokens[0].tolist() == right[0]


@pytest.mark.parametrize("name", WINDOWED)
def test_what_is_drawn_beyond_a_window_is_drawn_from_full_re_runs(name):
    dtype = torch.float32 if name == "gpt_oss" else torch.float64
    model, seen = tiny_model(name, dtype, max_position_embeddings=64), LONG[0].tolist()
    drawn = draft_and_verify(model, LookupDrafter(), LONG[0], 20, temperature=1.0, seed=[7]).tokens[0].tolist()
    for token, u in zip(drawn, np.random.default_rng(7).random(20), strict=True):
        with torch.no_grad():
            below = model(torch.tensor([seen]), use_cache=False).logits[0, -1].double().softmax(-1).cumsum(-1)
        assert int((below <= u).sum()) == token
        seen.append(token)


def test_the_look_goes_beyond_a_window_that_only_just_acts(monkeypatch):
    monkeypatch.setattr(verify, "layer_windows", lambda config: {"sliding": None})
    with pytest.raises(CannotDo, match="its attention does not serve drafts"):
        draft_and_verify(tiny_model("mistral"), None, IDS, 3)  # six tokens, a window of five


@pytest.mark.parametrize("room", (0, 1, 2, 3))
def test_the_marginal_drafts_less_where_a_row_comes_near_the_models_last_position(room):
    model = tiny_model("gpt_neox")  # which reads 32 tokens
    rows = [torch.arange(32 - 6 - room) % 7, IDS]
    drafter = MarginalDrafter(model, {2: {"exact": True}, 3: {"top_k": 3}, 4: {"top_k": 2}})
    for widths in (None, (2, 1, 1)):
        done = draft_and_verify(model, drafter, rows, 6, widths)
        assert [x.tolist() for x in done.tokens] == [greedy_decode(model, row, 6).tolist() for row in rows]
    found = drafter([list(range(7)) * 4 + [1, 2], [3, 1, 4]], None, (2, 1, 1), {})
    assert (found[0, :, 0] >= 0).tolist() == [True, True, True] and (found[1, :, 0] >= 0).all()
    found = drafter([list(range(7)) * 4 + [1, 2, 3, 4], [3, 1, 4]], None, (2, 1, 1), {})
    assert (found[0, :, 0] >= 0).tolist() == [True, False, False] and (found[1, :, 0] >= 0).all()
