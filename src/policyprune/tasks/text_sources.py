"""What a text task comes down to: texts to learn from, with their shares, and those whose test stays apart."""

from dataclasses import dataclass

from policyprune.config.schema import LanguageModeling, Mixture, Text
from policyprune.config.texts import parts_of, shares


@dataclass(frozen=True, kw_only=True)
class TextSources:
    """Corpora that sequences are cut from, and corpora whose test documents are left out of all of them.

    The first of these has the test text.
    """

    training: tuple[LanguageModeling, ...]
    tests: tuple[LanguageModeling, ...]
    weights: tuple[float, ...] = (1.0,)

    @property
    def name(self) -> str:
        """The names of what is trained on."""
        return ", ".join(corpus.name for corpus in self.training)

    def shares(self, total: int) -> list[int]:
        """How many of `total` sequences are of each corpus."""
        return shares(self.weights, total)


def sources_of(config: Text) -> TextSources:
    """The corpora of a task."""
    if isinstance(config, Mixture):
        parts = tuple(parts_of(config))
        return TextSources(training=parts, tests=parts, weights=tuple(config.weights or [1.0] * len(parts)))
    assert isinstance(config, LanguageModeling)
    return TextSources(training=(config,), tests=(config,))
