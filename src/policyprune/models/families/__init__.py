"""The table of families by `config.model_type`. A new one is a table in a file here and a name below."""

from transformers import PreTrainedConfig

from policyprune.errors import UsageError
from policyprune.models.families.encoders import BERT, DISTILBERT
from policyprune.models.families.gpt import BLOOM, FALCON, GPT2, GPT_NEOX, OPT
from policyprune.models.families.llama import GEMMA2, GRANITE, LLAMA, OLMO2, PHI3
from policyprune.models.family import Family

TABLES = (LLAMA, GEMMA2, GRANITE, OLMO2, PHI3, GPT2, OPT, GPT_NEOX, BLOOM, FALCON, BERT, DISTILBERT)
FAMILIES: dict[str, Family] = {kind: family for family in TABLES for kind in family.model_types}


def family_of(config: PreTrainedConfig) -> Family:
    """The table for a config; UsageError for a family without one."""
    if config.model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UsageError(
            f"model.source: no family table for {config.model_type!r}, docs/add-a-model.md shows how to add it; "
            f"known: {known}"
        )
    return FAMILIES[config.model_type]
