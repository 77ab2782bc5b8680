"""A frozen model whose blocks are on the device only while they run."""

import torch
from toy import make_base

from langext.architectures import families, streaming


def test_each_block_is_on_the_device_only_while_it_runs():
    net, seen = make_base("llama", 320).float(), []
    ids = torch.arange(8)[None]
    before = net(input_ids=ids).logits
    stored = {name: parameter.data_ptr() for name, parameter in families.blocks(net).named_parameters()}
    for block in families.blocks(net):
        block.mlp.up_proj.register_forward_hook(lambda module, *_: seen.append(module.weight.dtype))
    streaming.install(net, torch.float64)  # a precision shows what is moved as well as a device, which a machine may lack
    after = net(input_ids=ids).logits
    assert seen == [torch.float64] * len(families.blocks(net)) and after.dtype == torch.float64
    assert torch.allclose(before.double(), after, atol=1e-4)
    assert {name: parameter.data_ptr() for name, parameter in families.blocks(net).named_parameters()} == stored
