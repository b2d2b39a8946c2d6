"""`python -m policyprune` is the same as `policyprune`."""

from policyprune.cli import main

main()
