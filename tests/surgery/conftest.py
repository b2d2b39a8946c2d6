"""Masks that a search could end with, and how two models are compared."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import Space

TOLERANCE = 1e-4  # of the largest logit
LAYERS = 3


def random_mask(space: Space, seed: int, keep: float = 0.6) -> Tensor:
    return torch.rand(space.n, generator=torch.Generator().manual_seed(seed)) < keep


def without(*blocks: tuple[int, str]) -> Callable[[Space], Tensor]:
    """A random mask that loses the named blocks as a whole."""

    def make(space: Space) -> Tensor:
        mask = random_mask(space, seed=0)
        for view in (space.views(mask)[block] for block in blocks):
            view.zero_()
        return mask

    return make


def equal_widths(groups: int, channels: int) -> Callable[[Space], Tensor]:
    """A mask that keeps the same number of units in every layer, but other ones."""

    def make(space: Space) -> Tensor:
        mask = torch.zeros(space.n, dtype=torch.bool)
        for (layer, kind), view in space.views(mask).items():
            kept = groups if kind == "attention" else channels
            view[torch.randperm(len(view), generator=torch.Generator().manual_seed(layer))[:kept]] = True
        return mask

    return make


MASKS: dict[str, Callable[[Space], Tensor]] = {
    "random 1": lambda space: random_mask(space, seed=1),
    "random 2": lambda space: random_mask(space, seed=2),
    "random, few kept": lambda space: random_mask(space, seed=3, keep=0.15),
    "nothing pruned": lambda space: torch.ones(space.n, dtype=torch.bool),
    "attention of the middle layer": without((1, "attention")),
    "FFN of the middle layer": without((1, "ffn")),
    "first layer": without((0, "attention"), (0, "ffn")),
    "last layer": without((LAYERS - 1, "attention"), (LAYERS - 1, "ffn")),
    "all attention": without(*((layer, "attention") for layer in range(LAYERS))),
    "equal widths": equal_widths(groups=2, channels=20),
    "equal widths that the stock config refuses": equal_widths(groups=3, channels=20),
}


@dataclass(frozen=True, eq=False)
class Subject(PrunableModel):
    """A dense model, its units, and a batch."""

    ids: Tensor

    def masked_logits(self, mask: Tensor) -> Tensor:
        """Logits (B, T, V) under masks (n,) or (B, n)."""
        with self.masked(mask) as model, torch.no_grad():
            return model(self.ids).logits


def subject_of(model: Any, units: tuple[str, ...] = ("attention", "ffn")) -> Subject:
    ids = torch.randint(3, model.config.vocab_size, (3, 10), generator=torch.Generator().manual_seed(5))
    prunable = PrunableModel.of(model, units)
    return Subject(model, prunable.adapter, prunable.space, ids)


@pytest.fixture(params=[False, True], ids=["without biases", "with biases"])
def subject(request: pytest.FixtureRequest, tiny_llama: Any, tiny_tokenizer: Any) -> Subject:
    sizes = {"num_hidden_layers": LAYERS, "vocab_size": len(tiny_tokenizer)}
    return subject_of(tiny_llama(attention_bias=request.param, mlp_bias=request.param, **sizes))


@pytest.fixture
def plain_subject(tiny_llama: Any, tiny_tokenizer: Any) -> Subject:
    return subject_of(tiny_llama(num_hidden_layers=LAYERS, vocab_size=len(tiny_tokenizer)))


@pytest.fixture(scope="session")
def masks() -> dict[str, Callable[[Space], Tensor]]:
    """Mask makers by name, for tests that need a certain one."""
    return MASKS


@pytest.fixture(params=MASKS, scope="session")
def make_mask(request: pytest.FixtureRequest) -> Callable[[Space], Tensor]:
    """Each of the masks in turn."""
    return MASKS[request.param]


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Tensor, Tensor], None]:
    """Two tensors agree to `TOLERANCE` of the largest element."""

    def check(actual: Tensor, expected: Tensor) -> None:
        assert (actual - expected).abs().max() <= TOLERANCE * expected.abs().max()

    return check
