"""A step of the policy gradient never looks at a number that its device computes.

Tensors without contents stand for a GPU: whatever would have to wait for a value raises.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from harness import validated
from policyprune.models.adapter import adapt
from policyprune.models.sequences import token_losses
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.optimizers.policy_gradient import Descent
from policyprune.pruning.optimizers.problem import Problem
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of
from policyprune.search.forwards import Forwards

IDS = torch.randint(3, 300, (4, 9), generator=torch.Generator().manual_seed(0))
ROWS = torch.arange(4)


@pytest.fixture
def no_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one look that transformers itself takes in a forward: whether positions are those of packed sequences."""
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)


def descent(tiny_llama: Any, optimizer: str, *overrides: str, device: str = "cpu") -> tuple[Descent, Forwards]:
    model, sequences, drawn = tiny_llama(attn_implementation="sdpa").to(device), IDS.to(device), ROWS.to(device)
    config = validated("budget.keep=0.8", f"optimizer={optimizer}", "optimizer.batch_size=4", *overrides)
    adapter = adapt(model)
    space = space_of(adapter, ("attention", "ffn"))
    start = torch.full((space.n,), 0.8, device=device)

    def loss(own: Any, rows: Tensor) -> Tensor:
        return token_losses(own, sequences[rows]).mean(-1)

    forwards = Forwards(PrunableModel(model, adapter, space), loss, sliced=False)
    budget = make_budget(config.budget, adapter, space)
    lengths = torch.full((len(IDS),), IDS.shape[1])
    problem = Problem(forwards, space, budget, start, start, lengths, seed=0, each=forwards.each)
    made = Descent(problem, config.optimizer)
    made._batches.draw = lambda: drawn  # type: ignore[method-assign]  # which sequences come next is the host's affair
    return made, forwards


@pytest.mark.parametrize("optimizer", ["policy_gradient", "policy_gradient_paper", "policy_gradient_released"])
def test_a_step_waits_for_nothing(tiny_llama: Any, no_packing: None, optimizer: str) -> None:
    made, forwards = descent(tiny_llama, optimizer, "optimizer.progressive=true")
    assert made.budget.linear
    with forwards.on(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as contentless:
        made.s = contentless.from_tensor(made.s)
        for _ in range(2):
            step = made.step()
        assert isinstance(step["loss"], Tensor)
        with pytest.raises(DataDependentOutputException):
            float(step["loss"])


@pytest.mark.gpu
def test_a_step_does_not_wait_for_a_gpu(tiny_llama: Any, gpu: torch.device, no_packing: None) -> None:
    made, forwards = descent(tiny_llama, "policy_gradient", "optimizer.progressive=true", device=gpu.type)
    with forwards.on(), torch.no_grad():
        made.step()  # in which the libraries set themselves up
        torch.cuda.set_sync_debug_mode("error")
        try:
            step = made.step()
            with pytest.raises(RuntimeError, match="synchroniz"):
                float(step["loss"])
        finally:
            torch.cuda.set_sync_debug_mode("default")
