"""The table of families by `config.model_type`. A new one is a short file here and a line below."""

from policyprune.models.adapter import Family
from policyprune.models.families.llama import LLAMA

FAMILIES: dict[str, Family] = {kind: family for family in (LLAMA,) for kind in family.model_types}
