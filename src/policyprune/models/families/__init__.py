"""The table of families by `config.model_type`. A new one is a short file here and a name below."""

from policyprune.models.adapter import Family
from policyprune.models.families.bert import BERT
from policyprune.models.families.bloom import BLOOM
from policyprune.models.families.distilbert import DISTILBERT
from policyprune.models.families.falcon import FALCON
from policyprune.models.families.gpt2 import GPT2
from policyprune.models.families.gpt_neox import GPT_NEOX
from policyprune.models.families.llama import LLAMA
from policyprune.models.families.olmo2 import OLMO2
from policyprune.models.families.opt import OPT
from policyprune.models.families.phi3 import PHI3

TABLES = (LLAMA, OLMO2, PHI3, GPT2, OPT, GPT_NEOX, BLOOM, FALCON, BERT, DISTILBERT)
FAMILIES: dict[str, Family] = {kind: family for family in TABLES for kind in family.model_types}
