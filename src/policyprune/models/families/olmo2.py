"""OLMo 2: LLaMA's names, but queries and keys are normalised over the features of all heads."""

from dataclasses import replace

from policyprune.models.adapter import Family
from policyprune.models.families.llama import LLAMA

OLMO2 = Family(
    model_types=("olmo2",),
    layers=LLAMA.layers,
    attention=replace(LLAMA.attention, together=lambda config: "queries and keys are normalised over all heads"),
    ffn=LLAMA.ffn,
    residual=LLAMA.residual,
)
