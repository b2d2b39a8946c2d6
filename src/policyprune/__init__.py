"""policyprune: structured pruning of transformer language models by policy search."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("policyprune")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
