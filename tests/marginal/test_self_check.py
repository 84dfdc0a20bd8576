"""What must hold before an answer is trusted: rounding within its margin, packing right in passes as real ones, no company."""

import threading

import pytest
import torch
from tiny_models import CONFIGS, GROUPED, VOCAB, tiny_model
from transformers import AutoModelForCausalLM, Llama4TextConfig

from mtp_utils.backbones.load import load_backbone
from mtp_utils.backbones.rounding import in_float32, refuse_company
from mtp_utils.base.refusals import CannotDo
from mtp_utils.marginal import certificates, reference
from mtp_utils.marginal.future import future_log_probs
from mtp_utils.marginal.packed import Packed
from mtp_utils.text import generated

TEXT = "".join(d.text for d in generated.documents("test")[:60])


def random_ids(shape=(2, 9), vocab=VOCAB):
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(0))


def test_the_setting_of_products_is_as_before_whoever_computes_in_float32():
    model, products, inside = tiny_model("llama", torch.float32), torch.backends.mkldnn.matmul, []
    first, go_on, left = (threading.Event() for _ in range(3))

    def one():
        with in_float32(model):
            first.set()
            go_on.wait(5)
        left.set()

    def other():
        first.wait(5)
        with in_float32(model):
            left.wait(5)
            inside.append(products.fp32_precision)

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        threads = [threading.Thread(target=work) for work in (one, other)]
        [thread.start() for thread in threads]
        threads[1].join(0.2)  # it waits, or is inside meanwhile
        go_on.set()
        [thread.join() for thread in threads]
        assert inside == ["ieee"] and products.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision(before)
    products.fp32_precision = "none"
    try:
        for above in ("bf16", "ieee"):  # it follows the setting above it afterwards, too
            torch.backends.mkldnn.fp32_precision = above
            with in_float32(model):
                assert products.fp32_precision == "ieee"
            assert products.fp32_precision == above
    finally:
        torch.backends.mkldnn.fp32_precision = "none"
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_pass_in_float32_is_that_of_a_widened_copy(name, dtype):
    model, wide = tiny_model(name, dtype), tiny_model(name, dtype).float()
    with in_float32(model):
        found = model(random_ids(), use_cache=False).logits
    with torch.no_grad():
        expected = wide(random_ids(), use_cache=False).logits
    assert torch.equal(found, expected) and {p.dtype for p in model.parameters()} == {dtype}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["ladder/w16-seed1", "ladder/w32-seed1", "ladder/w64-seed1"])
def test_certificates_in_bfloat16_hold_in_float32(name):
    model, full = (load_backbone(name, device="cpu", dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    ids = torch.tensor(full.tokenizer(TEXT)["input_ids"])
    ids = ids[: len(ids) // 256 * 256].view(-1, 256)[:12]
    f = future_log_probs(model.model, ids, 1, exact=True)
    with torch.autocast("cpu", torch.bfloat16):
        cast = future_log_probs(full.model, ids, 1, exact=True)
    true = future_log_probs(full.model, ids, 1, exact=True).log_probs.argmax(-1)
    for found in (f, cast):
        assert (found.log_probs.argmax(-1) == true)[found.certified].all() and found.certified.float().mean() > 0.05
    first, second = f.log_probs.exp().topk(2).values.unbind(-1)
    assert (f.log_probs.argmax(-1) != true)[first - second > certificates.LEAST[torch.bfloat16]].any()  # a constant would not do


def test_margins_follow_what_is_computed_and_not_the_models_dtype(monkeypatch):
    model = tiny_model("llama", torch.float32)
    assert certificates.margin_of(tiny_model("llama")) == 1e-10 and certificates.margin_of(model) == 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert certificates.margin_of(model) >= 2e-2
    assert certificates.margin_of(model) == 1e-5
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert certificates.margin_of(model) > 1e-5
    finally:
        torch.set_float32_matmul_precision(before)
    half = tiny_model("llama", torch.bfloat16)
    own, least = certificates.margin_of(half), certificates.LEAST[torch.bfloat16]

    def refuse(model):
        raise RuntimeError("an operation that takes no float32")

    monkeypatch.setattr(certificates, "in_float32", refuse)
    assert least < own != certificates.margin_of(tiny_model("llama", torch.bfloat16)) == certificates.UNMEASURED[torch.bfloat16]


def llama4(floor_scale):
    shape = GROUPED | dict(max_position_embeddings=16384, num_hidden_layers=4)
    experts = dict(intermediate_size_mlp=24, num_local_experts=2, num_experts_per_tok=1)
    config = Llama4TextConfig(**shape, **experts, attn_temperature_tuning=True, floor_scale=floor_scale, attn_scale=0.5)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4) if parameter.ndim > 1 else None
    return model.double()


@pytest.mark.parametrize("floor_scale", [8, 64, 512])
def test_what_depends_on_a_candidates_place_in_the_pass_is_not_packed(floor_scale):
    model, ids = llama4(floor_scale), random_ids((1, 12))
    with pytest.warns(UserWarning, match="cannot be packed .*off by"):
        f = future_log_probs(model, ids, 2, exact=True)
    paths = torch.cat([ids.expand(VOCAB, -1), torch.arange(VOCAB)[:, None]], 1)
    with torch.no_grad():
        log_p = model(paths, use_cache=False).logits.log_softmax(-1)
    expected = (log_p[0, -2][:, None] + log_p[:, -1]).logsumexp(0)
    assert (f.log_probs[0, -1] - expected).abs().max() < 1e-6  # its rotary angles are float32


def test_what_a_wide_pass_showed_of_other_weights_proves_nothing():
    """Attention that reads nothing yet hides that it depends on a candidate's place; a margin is that of the weights, too."""
    model, ids = llama4(64), random_ids((1, 12))
    trained = {name: x.clone() for name, x in model.state_dict().items()}
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight.zero_()
    assert reference.engine_for(model, 14)[0] is Packed
    model.load_state_dict(trained)
    with pytest.warns(UserWarning, match="cannot be packed .*off by"):
        f = future_log_probs(model, ids, 2, exact=True)
    assert (f.log_probs - future_log_probs(model, ids, 2, exact=True, reference=True).log_probs).abs().max() < 1e-6
    half, flat = tiny_model("llama", torch.bfloat16), tiny_model("llama", torch.bfloat16)
    with torch.no_grad():
        flat.lm_head.weight.zero_()
    assert certificates.margin_of(flat) < certificates.margin_of(half)
    flat.load_state_dict(half.state_dict())
    assert certificates.margin_of(flat) == certificates.margin_of(half)


def beside(module, inputs, output):
    """A norm over the batch, of evaluation mode too."""
    return output - 0.1 * output.mean(0, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slow", [False, True])
def test_a_model_whose_answers_depend_on_company_is_refused(dtype, slow):
    model = tiny_model("llama", dtype)
    future_log_probs(model, random_ids(), 2, top_k=2, reference=slow)
    model = tiny_model("llama", dtype)
    model.model.layers[0].mlp.register_forward_hook(beside)
    with pytest.raises(CannotDo, match="of a text changes with the text beside it") as error:
        future_log_probs(model, random_ids(), 2, top_k=2, reference=slow)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("masked", [-torch.inf, torch.finfo(torch.float32).min])
def test_company_is_seen_also_where_a_token_is_masked(masked):
    model = tiny_model("llama", torch.float32)
    model.lm_head.register_forward_hook(lambda module, inputs, output: output.index_fill(-1, torch.tensor([3]), masked))
    refuse_company(model)
    model = tiny_model("llama", torch.float32)
    model.model.layers[0].mlp.register_forward_hook(beside)
    model.lm_head.register_forward_hook(lambda module, inputs, output: output.index_fill(-1, torch.tensor([3]), masked))
    with pytest.raises(CannotDo, match="of a text changes with the text beside it"):
        refuse_company(model)


@pytest.mark.filterwarnings("ignore")
def test_a_dynamically_quantised_model_is_refused_in_one_line():
    model = tiny_model("llama", torch.float32)
    model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(CannotDo, match="of a text changes with the text beside it") as error:
        future_log_probs(model, random_ids(), 2, top_k=2)
    assert "\n" not in str(error.value)


def test_the_check_is_made_again_for_another_way_of_computing(monkeypatch):
    made, real = [], reference.compare
    monkeypatch.setattr(reference, "compare", lambda *given: made.append(1) or real(*given))
    model = tiny_model("gpt_neox", torch.float32)
    for _ in range(2):
        assert reference.engine_for(model, 20)[0] is Packed
        assert reference.engine_for(model, 24)[0] is Packed  # of the same order of length
    assert len(made) == 1
    with torch.autocast("cpu", torch.bfloat16):
        reference.engine_for(model, 20)
    model.set_attn_implementation("eager")
    reference.engine_for(model, 20)
    assert len(made) == 3


def test_what_rounding_hides_is_judged_in_float32_by_its_tolerance_and_once(monkeypatch):
    model = load_backbone("ladder/w16-seed1", device="cpu", dtype=torch.bfloat16).model
    made, real = [], reference.compare
    monkeypatch.setattr(reference, "compare", lambda *given: made.append(1) or real(*given))
    assert [reference.engine_for(model, 200)[0] for _ in range(3)] == [Packed] * 3
    assert len(made) == 3  # of one call: in bfloat16, in float32, and within what rounding may do

    def off(model, tolerance=None):
        error = 0.2 if tolerance is None else 0.1  # of which rounding is a half
        return (None if error <= (tolerance or reference.tolerance_of(model)) else "off"), True

    assert reference.beyond_rounding(model, off) == ("off", True)


def test_threads_take_turns_and_a_plain_call_between_is_right_or_told():
    model, ids, found, told = tiny_model("mistral"), random_ids(), [], set()
    alone = future_log_probs(model, ids, 3, exact=True).log_probs
    with torch.no_grad():
        plain = model(ids).logits

    def work():
        found.extend(future_log_probs(model, ids, 3, exact=True).log_probs for _ in range(8))

    threads = [threading.Thread(target=work) for _ in range(3)]
    [thread.start() for thread in threads]
    while any(thread.is_alive() for thread in threads):
        try:
            with torch.no_grad():
                assert torch.equal(model(ids).logits, plain)
        except RuntimeError as error:
            told.add(str(error))
    assert len(found) == 24 and all(torch.equal(x, alone) for x in found)
    assert told <= {"another thread has this model in use (future_log_probs): take turns, or give each its own model"}
    assert model.config._attn_implementation == "sdpa"
