"""The optimizers and the tunings: what can be set of each."""

from dataclasses import dataclass

from omegaconf import MISSING

from policyprune.config.fields import choice, number


@dataclass
class Optimizer:
    """Base of the optimizers."""

    name: str = MISSING

    @property
    def length(self) -> int | None:
        """Number of steps of the search; None where it has none, or they are not known before."""
        return None

    @property
    def sliced(self) -> bool:
        """Whether forward passes leave out what a mask prunes, instead of multiplying it by zero."""
        return False


@dataclass
class Stepwise(Optimizer):
    """Base of those that are told their number of steps."""

    steps: int = number(at_least=1)

    @property
    def length(self) -> int | None:
        """Number of steps of the search."""
        return self.steps


@dataclass
class OneShot(Optimizer):
    """Prune by the metric alone."""


@dataclass
class PolicyGradient(Stepwise):
    """Bernoulli policy gradient; every field is an independent choice (docs/policy-gradient.md)."""

    batch_size: int = number(at_least=1)  # sequences per step
    masks: int = number(at_least=1)  # K, forward passes per step
    mask_per: str = choice("sequence", "batch")
    score: str = choice("textbook", "released", "natural")
    baseline: str = choice("none", "moving_average", "leave_one_out", "residual")
    window: int = number(at_least=1)  # T of the moving average
    window_update: str = choice("after_use", "before_use")
    divisor: str = choice("masks", "masks_minus_one")
    attention_rate: float = number(above=0)  # learning rate of attention units, relative to that of channels
    learning_rate: float = number(above=0)
    schedule: str = choice("constant", "linear", "cosine")
    projection: str = choice("cap", "equality")
    progressive: bool = MISSING
    sliced: bool = MISSING  # with mask_per=batch: leave out what a mask prunes instead of multiplying it by zero


@dataclass
class Kwon(Optimizer):
    """Fisher search and rearrangement of Kwon et al., NeurIPS 2022."""

    rearrange: bool = MISSING


@dataclass
class PPO(Optimizer):
    """Mask search by proximal policy optimisation; docs/ppom.md says what is the paper's and what is ours."""

    stages: int = number(at_least=0)  # of the warm start that is pruned step by step; 0: without it
    iterations: int = number(at_least=1)
    episodes: int = number(at_least=2)  # per iteration
    horizon: int = number(at_least=1)  # refinements of the mask in an episode
    examples: int = number(at_least=1)  # for each reward
    held_out: float = number(above=0, below=1)  # share of the calibration examples that picks the final mask
    chunk: int = number(at_least=1)  # neighbouring channels, by importance, that are decided together
    epochs: int = number(at_least=1)
    clip: float = number(above=0, below=1)
    gae_lambda: float = number(at_least=0, at_most=1)
    discount: float = number(above=0, at_most=1)
    entropy: float = number(at_least=0)  # bonus at the start, annealed to 0
    kl_stop: float = number(above=0)  # per decision
    learning_rate: float = number(above=0)
    sliced: bool = MISSING  # leave out what a mask prunes, which is faster the more is pruned
    candidates: int = number(at_least=1)  # masks compared on the held-out examples, the warm start among them

    @property
    def length(self) -> int | None:
        """Number of iterations."""
        return self.iterations


@dataclass
class Evolution(Stepwise):
    """Evolutionary search over masks within the budget."""

    population: int = number(at_least=2)  # masks, and forward passes, per generation
    parents: int = number(at_least=1)  # masks that stay
    mutation: float = number(above=0, below=1)  # share of the kept units that a mutation exchanges
    batch_size: int = number(at_least=1)  # sequences per forward pass
    final_batches: int = number(at_least=1)  # on which the last parents are compared
    sliced: bool = MISSING  # leave out what a mask prunes


@dataclass
class Gumbel(Stepwise):
    """Mask learning by back-propagation through the binary concrete distribution."""

    batch_size: int = number(at_least=1)  # sequences per step
    masks: int = number(at_least=1)  # forward and backward passes per step, a mask for each sequence in each
    learning_rate: float = number(above=0)  # root mean square change of the keep probabilities in the first step
    temperature: float = number(above=0)  # at the start
    final_temperature: float = number(above=0)
    straight_through: bool = MISSING  # binary masks in the forward pass, relaxed ones in the backward pass


@dataclass
class StraightThrough(Stepwise):
    """The policy's gradient by back-propagation through sampled masks, from the mask of the metric on."""

    batch_size: int = number(at_least=1)  # sequences per step, a mask for each
    backward_batch: int = number(at_least=1)  # of them back-propagated at a time: what memory grows with
    learning_rate: float = number(above=0)  # root mean square change of the keep probabilities in the first step
    attention_rate: float = number(at_least=0)  # of heads, relative to channels; 0: they stay as the metric has them
    momentum: float = number(at_least=0, below=1)
    confidence: float = number(at_least=0.5, at_most=1)  # initial keep probability of a channel that the metric keeps


@dataclass
class Greedy(Optimizer):
    """Greedy removal by loss, a unit at a time."""

    sequences: int = number(at_least=1)  # calibration sequences that every trial looks at
    batch_size: int = number(at_least=1)  # of them per forward pass
    sliced: bool = MISSING  # leave out what a mask prunes


@dataclass
class Given(Optimizer):
    """No search: the mask of another run."""

    folder: str = MISSING  # of that run


@dataclass
class Tuning:
    """What is done to the output projections of the kept units."""

    name: str = choice("none", "cg2", "lsmr", "bias_compensation", "reconstruct")


@dataclass
class Calibrated(Tuning):
    """A tuning that looks at calibration sequences."""

    sequences: int = number(at_least=1)


@dataclass
class LeastSquares(Calibrated):
    """Real-valued scales of the kept units, by layer-wise least squares against the dense model's outputs."""

    damp: float = number(at_least=0)  # relative to the mean diagonal of the normal matrix
    tolerance: float = number(above=0)  # relative residual
    iterations: int = number(at_least=1)
    limit: float = number(above=0)  # a layer with a scale beyond +-limit keeps its binary mask


@dataclass
class BiasCompensation(Calibrated):
    """The mean output of the removed units becomes a bias of the output projection (FLAP)."""


@dataclass
class Reconstruct(Calibrated):
    """New output projections for the kept units, by layer-wise least squares against the dense model's outputs."""

    # relative to the mean diagonal of the normal matrix; of several each block takes its best on tokens held out
    ridge: list[float] = number(at_least=0)
