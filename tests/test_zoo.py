"""What is true of the ladder is true of models and tokenizers of other shapes, or refused with its reason."""

import json

import numpy as np
import pytest
import torch
import zoo
from transformers import AutoModelForCausalLM

from mtp_utils.backbones import load_backbone
from mtp_utils.backbones.look import look
from mtp_utils.base import profiles
from mtp_utils.base.refusals import CannotDo
from mtp_utils.decoding import LookupDrafter, draft_and_verify
from mtp_utils.findings import controls, measures
from mtp_utils.findings.scoring import Labels, Tokenizer
from mtp_utils.heads import Heads, HeadSpec
from mtp_utils.marginal import future_log_probs
from mtp_utils.text import blocks, own
from mtp_utils.text.tokens import vocabulary_of

LONG = 48  # tokens, twice the windows of attention
PADDED = [name for name, animal in zoo.ZOO.items() if animal.padding]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="module", params=zoo.ZOO)
def animal(request, root):
    """Its name, its folder, and it as a backbone."""
    folder = zoo.saved(request.param, root)
    return request.param, folder, load_backbone(str(folder), device="cpu")


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A small text as the run's corpus."""
    (tmp_path / "text").write_text("".join(zoo.TEXT))
    monkeypatch.setenv("MTP_BUILD", str(tmp_path / "build"))
    monkeypatch.setenv(profiles.OWN, json.dumps({"backbones": {}, "text": str(tmp_path / "text")}))


def sentence(backbone, length: int = LONG) -> torch.Tensor:
    return backbone.tokenizer("".join(zoo.TEXT[70:80]), return_tensors="pt", add_special_tokens=False)["input_ids"][:, :length]


def windows(backbone, n: int = 10):
    tokenizer = backbone.tokenizer
    return blocks.evaluation_blocks("text", "test", tokenizer, n_documents=n, positions_per_document=1, horizon=4)


def test_a_look_lets_it_pass_and_says_what_lies_beyond_its_tokens(animal):
    name, folder, backbone = animal
    first, *others = look(str(folder), 260)
    said = [line for line in others if "rows without a token" in line]
    assert "GB of weights" in first and len(said) == (zoo.ZOO[name].padding > 0)
    assert backbone.model(sentence(backbone)).logits.shape[-1] == vocabulary_of(backbone.tokenizer)


@pytest.mark.filterwarnings("ignore:.*slow")
def test_the_marginal_is_the_sum_over_the_tokenizers_tokens(animal):
    _, _, backbone = animal
    ids, model = sentence(backbone), backbone.model
    every = torch.arange(vocabulary_of(backbone.tokenizer))
    p = model(ids).logits[0, -1].softmax(-1)
    after = model(torch.cat([ids.expand(len(every), -1), every[:, None]], 1), use_cache=False).logits[:, -1].softmax(-1)
    here = torch.arange(ids.shape[1])[None] == ids.shape[1] - 1
    exact = future_log_probs(model, ids, 2, exact=True, positions=here)
    assert torch.allclose(exact.log_probs[0, -1].exp(), p @ after, atol=2e-5)
    top = p.topk(16).indices
    cut = future_log_probs(model, ids, 2, top_k=16, positions=here)
    assert torch.allclose(cut.log_probs[0, -1].exp(), p[top] @ after[top], atol=2e-5)
    assert abs(cut.captured_mass[0, -1] - p[top].sum()) < 1e-5


@torch.no_grad()
def test_heads_start_as_the_lm_head_or_are_refused_with_the_reason(animal):
    name, _, backbone = animal
    if "heads" in zoo.ZOO[name].cannot:
        with pytest.raises(CannotDo):
            Heads(backbone, HeadSpec("residual", offsets=(2,)))
        return
    heads, ids = Heads(backbone, HeadSpec("residual", offsets=(2,))), sentence(backbone)
    out = backbone.model(ids, output_hidden_states=True, use_cache=False)
    found = heads.log_probs(2, heads(out.hidden_states[-1][:, :, None])[2])
    assert torch.allclose(found, out.logits.log_softmax(-1), atol=1e-4)


def test_drafts_change_no_token_or_are_refused_with_the_reason(animal):
    name, _, backbone = animal
    ids = sentence(backbone)
    if "drafts" in zoo.ZOO[name].cannot:
        with pytest.raises(CannotDo):
            draft_and_verify(backbone.model, LookupDrafter(), ids[0], 24)
        return
    done = draft_and_verify(backbone.model, LookupDrafter(), ids[0], 24)
    greedy = {"do_sample": False, "min_new_tokens": 24, "max_new_tokens": 24, "eos_token_id": None}
    theirs = backbone.model.generate(ids, attention_mask=torch.ones_like(ids), **greedy)
    assert done.tokens[0].tolist() == theirs[0, ids.shape[1] :].tolist() and done.passes["drafted"].any()


def test_its_tokenizer_cuts_a_text_into_blocks_that_say_the_text(animal, text):
    _, _, backbone = animal
    found, pieces = windows(backbone), own.pieces()[0]
    for row, there in zip(found.tokens, found.mask, strict=True):
        said = backbone.tokenizer.decode(row[there], skip_special_tokens=True)
        assert len(said) > 100 and any(said in piece for piece in pieces)
    assert len(found.documents) == found.scored.sum() == 10 and int(found.tokens.max()) < vocabulary_of(backbone.tokenizer)


@pytest.mark.parametrize("name", PADDED)
def test_what_stands_for_no_text_is_no_label_and_in_no_distribution(name, root, text):
    backbone = load_backbone(str(zoo.saved(name, root)), device="cpu")
    part, known = windows(backbone), vocabulary_of(backbone.tokenizer)
    estimators = {"1": {"exact": True}, "2": {"top_k": 8, "samples": 8}}
    found = measures.marginal_arrays(backbone, part, estimators, ("sampled", "greedy"))
    assert found["log_probs.1"].shape[1] == found["log_probs.2"].shape[1] == known
    assert np.allclose(np.exp(found["log_probs.1"]).sum(1), 1, atol=1e-4)
    assert max(found[f"labels.{source}"].max() for source in ("sampled", "greedy")) < known


def test_two_models_of_one_tokenizer_and_different_rows_are_scored_side_by_side(root, text):
    pair = [load_backbone(str(zoo.saved(name, root)), device="cpu") for name in ("llama", "llama, padded")]
    assert pair[0].model.config.vocab_size == pair[1].model.config.vocab_size == 300
    part, tables = windows(pair[0]), []
    for backbone in pair:
        drawn = measures.marginal_arrays(backbone, part, {"1": {"exact": True}}, ("sampled", "greedy"))
        labels = Labels(measures.label_table(part, {name: drawn[f"labels.{name}"] for name in ("sampled", "greedy")}))
        counted = controls.control_table(Tokenizer(backbone.tokenizer), part, labels, backbone.name, "pretrain", "")
        tables.append(counted[counted.label_source == "data"].drop(columns="backbone"))
    assert tables[0].equals(tables[1]) and np.isfinite(tables[0]["log_prob"]).all()


def test_a_padded_model_says_of_its_tokens_what_it_said_with_all_rows_divided_by_their_sum(root):
    folder = zoo.saved("llama, padded", root)
    backbone = load_backbone(str(folder), device="cpu")
    whole, ids = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), sentence(backbone)
    p, found = whole(ids).logits.softmax(-1)[..., :300], backbone.model(ids).logits.softmax(-1)
    assert whole.config.vocab_size == 320 and torch.allclose(found, p / p.sum(-1, keepdim=True), atol=1e-6)
