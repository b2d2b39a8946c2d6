"""Importance scores by what passes the blocks of the dense model, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from policyprune.config.fields import named, setting
from policyprune.config.schema import Config, Importance
from policyprune.config.schema.run import PER_COST
from policyprune.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from policyprune.models.adapter import Block
    from policyprune.models.layerwise import Layer
    from policyprune.pruning.importance.evidence import Evidence


@dataclass(kw_only=True)
class WandaSp(Importance):
    """Wanda-sp (An et al., AAAI 2024): weight magnitude times input norm, summed over the columns of a unit."""

    name: str = named("wanda_sp")

    def score(self, evidence: Evidence) -> Tensor:
        """Scores (n,) float32 on the CPU: mean over rows i of |W_ij| * ||X_j||_2, summed over a unit's columns j.

        W is the output or down projection and X its input on all calibration tokens but padding. The layers are scored
        in order; after each, its worst `1 - keep` units are masked, so that the next layers see already pruned inputs
        (methods, section 3).
        """
        import torch

        from policyprune.models.layerwise import projection, walk
        from policyprune.pruning.masking import Masking

        model, space = evidence.model, evidence.space
        masking = Masking(evidence.adapter, space)
        mask = torch.ones(1, space.n)
        views = space.views(mask[0])
        scores: dict[tuple[int, str], Tensor] = {}
        with torch.no_grad(), masking.on(model):
            for layer in walk(model, evidence.adapter, evidence.batches()):
                blocks = [block for block in evidence.blocks() if block.layer == layer.index]
                for block, norms in zip(blocks, _input_norms(model, layer, blocks), strict=True):
                    per_column = projection(model, block)[0].float().abs().mean(0) * norms
                    unit = per_column.view(block.count, block.width).sum(1).cpu()
                    scores[block.layer, block.kind] = unit
                    worst = unit.argsort(stable=True)[: block.count - round(evidence.keep * block.count)]
                    views[block.layer, block.kind][worst] = 0
                masking.set(mask)
        return torch.cat([scores[group.layer, group.kind] for group in space.groups])


def _input_norms(model: nn.Module, layer: Layer, blocks: list[Block]) -> list[Tensor]:
    """L2 norm over the tokens of each input feature of the blocks' output projections: (features,) float32 each."""
    import torch

    from policyprune.models.layerwise import watch

    squares: dict[str, Tensor | float] = {block.out: 0.0 for block in blocks}
    for seen in watch(model, layer, list(squares), final=False):
        for name, (x, _) in seen.items():
            squares[name] = squares[name] + x.float().square().sum(0)
    return [torch.as_tensor(squares[block.out]).sqrt() for block in blocks]


@dataclass(kw_only=True)
class Flap(Importance):
    """FLAP (An et al., AAAI 2024): how much a unit's input fluctuates, weighted by its output columns."""

    name: str = named("flap")
    per_cost: bool = setting(False, help=PER_COST)

    def score(self, evidence: Evidence) -> Tensor:
        """Scores (n,) float32 on the CPU: var(X_j) * ||W_:j||_2^2, standardised in each block, mean over the columns.

        W is the output or down projection, X its input in the dense model, with the sample variance over all tokens but
        padding. Standardised scores are compared over all blocks as they are, not per cost.
        """
        import torch

        from policyprune.models.layerwise import projection, walk, watch

        scores = []
        with torch.no_grad():
            for layer in walk(evidence.model, evidence.adapter, evidence.batches()):
                blocks = [block for block in evidence.blocks() if block.layer == layer.index]
                moments = {block.out: Moments() for block in blocks}
                for seen in watch(evidence.model, layer, list(moments), final=True):
                    for name, (x, _) in seen.items():
                        moments[name].add(x)
                for block in blocks:
                    weight, _ = projection(evidence.model, block)
                    per_column = moments[block.out].variance() * weight.double().square().sum(0)
                    spread = per_column.std().clamp(min=torch.finfo(torch.float64).tiny)
                    standard = (per_column - per_column.mean()) / spread
                    scores.append(standard.view(block.count, block.width).mean(1).float().cpu())
        return torch.cat(scores)


@dataclass
class Moments:
    """Mean and squared deviations, merged batch by batch (Chan et al. 1979), so that a large mean costs no digits."""

    count: int = 0
    mean: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        """Take samples (N, features)."""
        if not len(x):
            return
        x = x.double()
        mean, both = x.mean(0), self.count + len(x)
        gap = mean - self.mean
        self.squares = self.squares + (x - mean).square().sum(0) + gap.square() * (self.count * len(x) / both)
        self.mean = self.mean + gap * (len(x) / both)
        self.count = both

    def variance(self) -> Tensor:
        """Sample variance (features,) float64."""
        assert not isinstance(self.squares, float)
        return self.squares / max(self.count - 1, 1)


@dataclass(kw_only=True)
class BlockInfluence(Importance):
    """Block Influence (Men et al., ShortGPT, 2024): how much a layer turns the hidden states that pass it."""

    name: str = named("block_influence")
    per_cost: bool = setting(False, help=PER_COST)

    def check(self, config: Config) -> None:
        """Whole layers alone."""
        finer = sorted(set(config.granularity.units) - {"layer"})
        if finer:
            raise UsageError(
                f"importance: block_influence scores whole layers, granularity={config.granularity.name} has "
                f"{', '.join(finer)}; use granularity=layer or another importance"
            )

    def score(self, evidence: Evidence) -> Tensor:
        """Scores (n,) float32 on the CPU: a layer's influence in equal parts on its units, so that they add up to it.

        The influence is 1 minus the mean over all tokens but padding of the cosine similarity between the layer's input
        and output in the dense model (section 3.2).
        """
        import torch
        from torch.nn.functional import cosine_similarity

        from policyprune.models.layerwise import walk

        influence: list[float] = []
        with torch.no_grad():
            for layer in walk(evidence.model, evidence.adapter, evidence.batches()):
                layer.produced = layer.outputs()
                pairs = zip(layer.counted(layer.hidden), layer.counted(layer.produced), strict=True)
                alike = [cosine_similarity(before.double(), after.double()) for before, after in pairs]
                influence.append(1 - float(torch.cat(alike).mean()))
        groups = evidence.space.groups
        units = [sum(group.count for group in groups if group.layer == i) for i in range(len(influence))]
        return torch.cat([torch.full((group.count,), influence[group.layer] / units[group.layer]) for group in groups])
