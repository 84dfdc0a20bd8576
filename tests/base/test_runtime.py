import pytest
import torch

from mtp_utils.base import runtime

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("has", "used", "dtype"),
    [
        ({"avx512_bf16": True}, "AVX512", torch.bfloat16),
        ({"avx512_bf16": True}, "AVX2", torch.float32),
        ({"avx2": True}, "AVX512", torch.float32),
    ],
)
def test_a_cpu_trains_in_bfloat16_where_it_has_it_and_torch_may_use_it(monkeypatch, has, used, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: used)
    assert runtime.choose_dtype(CPU, training=True)[0] == dtype
    assert runtime.choose_dtype(CPU)[0] == torch.float32, "what is measured is float32 all the same"
