"""The costs that budgets are made of, against counts on the shrunk model that know nothing of units."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from policyprune.models.adapter import Adapter, adapt
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import Space, space_of
from policyprune.surgery.shrink import shrink

LENGTH = 12


def kept_cost(adapter: Adapter, space: Space, mask: Tensor, what: str) -> int:
    views = space.views(mask)
    price = {b: b.params_per_unit if what == "params" else b.macs(LENGTH) for b in adapter.blocks}
    return sum(price[block] * int(views[block.layer, block.kind].sum()) for block in adapter.blocks)


def counted_macs(model: Any) -> int:
    """Multiply-accumulates that torch sees in a forward of one sequence (it counts 2 FLOPs for each)."""
    ids = torch.randint(3, 300, (1, LENGTH))
    with FlopCounterMode(display=False) as counter:
        model.base_model(input_ids=ids, use_cache=False)
    return counter.get_total_flops() // 2


def counted_params(model: nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("keep", [1.0, 0.7, 0.3])
def test_the_kept_units_cost_what_the_shrunk_model_costs(tiny_llama: Any, biases: bool, keep: float) -> None:
    model = tiny_llama(attention_bias=biases, mlp_bias=biases)
    adapter = adapt(model)
    space = space_of(adapter, ["attention", "ffn"])
    mask = torch.rand(space.n) < keep
    mask[space.group_of == 2] = keep == 1.0  # the attention of layer 1 goes as a whole
    smaller = shrink(PrunableModel(model, adapter, space), mask)
    assert counted_macs(smaller) == kept_cost(adapter, space, mask, "flops")
    assert counted_params(smaller) == kept_cost(adapter, space, mask, "params") + adapter.fixed_params


def test_the_adapter_of_a_shrunk_model_counts_what_is_left(tiny_llama: Any) -> None:
    model = tiny_llama()
    adapter = adapt(model)
    space = space_of(adapter, ["attention", "ffn"])
    mask = torch.rand(space.n) < 0.5
    mask[space.group_of == 0] = False
    smaller = adapt(shrink(PrunableModel(model, adapter, space), mask))
    assert [b.count for b in smaller.blocks] == [int(view.sum()) for view in space.views(mask).values()]
    assert sum(b.count * b.macs(LENGTH) for b in smaller.blocks) == kept_cost(adapter, space, mask, "flops")
    assert smaller.fixed_params == adapter.fixed_params
