"""What tensors on a GPU decide is what they decide on the CPU."""

import copy
from typing import Any

import pytest
import torch

import policyprune as pp
from block_problems import problem
from harness import paragraphs, validated
from policyprune.models.adapter import adapt
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.budget.projection import project
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.second_order.elimination import eliminate
from policyprune.pruning.second_order.statistics import SecondOrder
from policyprune.pruning.space import space_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("width", "count", "together"), [(1, 600, 16), (4, 12, 1)])
def test_units_go_in_the_same_order(width: int, count: int, together: int, gpu: torch.device) -> None:
    matrix, right = problem(width, count, seed=0, tokens=900).damped(0.1)
    found = eliminate(matrix.to(gpu), right.to(gpu), width, together)
    expected = eliminate(matrix, right, width, together)
    assert torch.equal(found.order, expected.order)
    torch.testing.assert_close(found.error, expected.error, rtol=1e-8, atol=0)


@pytest.mark.parametrize("budget", ["rate", "params"])
@pytest.mark.parametrize("mode", ["cap", "equality"])
@pytest.mark.parametrize("granularity", ["head_channel", "all"])
def test_the_projection_is_the_same(
    tiny_llama: Any, budget: str, mode: str, granularity: str, gpu: torch.device
) -> None:
    config = validated(f"budget={budget}", "budget.keep=0.6", f"granularity={granularity}", "importance=magnitude")
    adapter = adapt(tiny_llama())
    space = space_of(adapter, config.granularity.units)
    limits = make_budget(config.budget, adapter, space)
    z = torch.randn(space.n).mul(0.5).add(0.7)
    found = project(z.to(gpu), limits.to(gpu), mode)
    assert found.device.type == gpu.type
    torch.testing.assert_close(found.cpu(), project(z, limits, mode), rtol=0, atol=1e-6)


def test_statistics_and_the_mask_that_they_lead_to_are_the_same(
    tiny_llama: Any, tiny_tokenizer: Any, gpu: torch.device
) -> None:
    """From the sums over activations to the knapsack over measured widths, in float32."""
    model = tiny_llama(vocab_size=len(tiny_tokenizer))
    models = model, copy.deepcopy(model).to(gpu)
    ids = torch.randint(5, 250, (8, 16))
    cpu, other = (
        SecondOrder.of(PrunableModel.of(own), [{"input_ids": ids.to(own.device)}], first_token=False) for own in models
    )
    for key, block in cpu.blocks.items():
        gram = other.blocks[key].gram.cpu()
        torch.testing.assert_close(gram, block.gram, rtol=1e-4, atol=1e-5 * float(block.gram.max()))
    mask = torch.arange(cpu.prunable.units.n) % 3 > 0
    for key, weight in cpu.weights(mask).items():
        torch.testing.assert_close(other.weights(mask)[key].cpu(), weight, rtol=1e-3, atol=1e-4)
    texts = paragraphs(40)
    masks = [
        pp.prune(own, texts, tiny_tokenizer, keep=0.6, method="ours_forward", length=16, bos=False).mask
        for own in models
    ]
    assert torch.equal(masks[0].cpu(), masks[1].cpu())
