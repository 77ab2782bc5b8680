"""KL to the base does not depend on the precision that a model is in."""

from types import SimpleNamespace

import pytest
import torch
from toy import ENGLISH, sentences

from langext.architectures import families
from langext.evaluation import heldout
from langext.models import loading


@pytest.mark.parametrize("noise", [0.0, 1e-2])
def test_a_small_distance_is_the_same_in_bf16(pico, noise):
    texts = {"eng_Latn": {"eng_Latn/book": sentences(ENGLISH, 8, 20)}}
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        base, moved = (loading.load_base(pico, torch.bfloat16) for _ in range(2))
        torch.manual_seed(0)
        for ffn in families.ffns(moved):
            ffn.down_proj.weight.data += noise * ffn.down_proj.weight.std() * torch.randn_like(ffn.down_proj.weight)
        reference = loading.Reference(base.to(dtype), loading.load_tokenizer(pico))
        kl, _ = heldout.distances(reference, SimpleNamespace(net=moved.to(dtype)), texts, 2000)
        found[dtype] = kl["eng_Latn"].value
        assert {p.dtype for net in (base, moved) for p in net.parameters()} == {dtype}, "as they were"
    assert found[torch.bfloat16] == pytest.approx(found[torch.float32], rel=1e-3) and (found[torch.float32] > 0) == (noise > 0)
