"""policyprune: structured pruning of transformer language models by policy search."""


def __getattr__(name: str) -> str:
    """`policyprune.__version__`, looked up where it is asked for; it stands in pyproject.toml alone."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("policyprune")
        except PackageNotFoundError:  # a source tree that was never installed
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
