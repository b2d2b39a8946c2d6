"""What a text task comes down to: texts to learn from, with their shares, and those whose test stays apart."""

from dataclasses import dataclass
from pathlib import Path

from policyprune.config.schema import Generated, LanguageModeling, Mixture, Text
from policyprune.config.texts import parts_of, shares, test_of


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


def sources_of(config: Text, written: Path | None = None) -> TextSources:
    """The corpora of a task; `written` is the file of what the dense model wrote, if it was asked to."""
    if isinstance(config, Generated):
        tests = tuple(test_of(config))
        if written is None:
            return TextSources(training=(), tests=tests, weights=())
        own = LanguageModeling(
            name=config.name,
            files=[str(written)],
            test_fraction=0.0,
            separator="" if config.chat else "\n\n",
            calibration=config.calibration,
        )
        return TextSources(training=(own,), tests=tests)
    if isinstance(config, Mixture):
        parts = tuple(parts_of(config))
        return TextSources(training=parts, tests=parts, weights=tuple(config.weights or [1.0] * len(parts)))
    assert isinstance(config, LanguageModeling)
    return TextSources(training=(config,), tests=(config,))
