"""CPU seconds of one selection over the units of LLaMA-7B (353,280), by budget, scope, alignment and granularity.

python benchmarks/selection.py [layers]
"""

import statistics
import sys
import time
from itertools import product

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from policyprune.config.schema import Budget as BudgetConfig
from policyprune.models.adapter import adapt
from policyprune.pruning.budget.block_latency import BlockLatency
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.budget.selection import select
from policyprune.pruning.space import space_of

SIZES = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000}
LATENCY = BlockLatency(0.05, {"attention": 0.05, "ffn": 0.06}, {"attention": 0.01, "ffn": 0.0000475})
FINE, NESTED = ("attention", "ffn"), ("attention", "ffn", "attention_block", "ffn_block", "layer")
REPEATS = 5


def main(layers: int) -> None:
    """Print a line per case: the median, in seconds, and the share of units that stays."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", num_hidden_layers=layers, **SIZES))
    adapter = adapt(model)
    cases = [*product(("rate", "params", "flops", "latency"), ("global", "per_layer", "uniform"), (None, 64), [FINE])]
    cases += [("params", "global", None, NESTED), ("latency", "global", None, NESTED)]
    for name, scope, align, units in cases:
        space = space_of(adapter, units)
        config = BudgetConfig(name=name, keep=0.7, scope=scope, sequence_length=128)
        budget = make_budget(config, adapter, space, LATENCY, align)
        scores = torch.rand(space.n, generator=torch.Generator().manual_seed(0))
        seconds = []
        for _ in range(REPEATS):
            start = time.process_time()
            mask = select(scores, budget)
            seconds.append(time.process_time() - start)
        kind = "gates" if units is NESTED else "units"
        shown = f"{name:8}{scope:10}{align or '-':>4} {kind}"
        print(f"{shown}  {statistics.median(seconds):7.3f} s  {int(mask.sum()):,} of {space.n:,}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 32)
