"""The table of families by `config.model_type`. A new one is a short file here and a name below."""

from policyprune.models.adapter import Family
from policyprune.models.families.bert import BERT
from policyprune.models.families.distilbert import DISTILBERT
from policyprune.models.families.llama import LLAMA

FAMILIES: dict[str, Family] = {kind: family for family in (LLAMA, BERT, DISTILBERT) for kind in family.model_types}
