"""Memory and time of a recovery on one GPU, by arithmetic, for models of 1B to 13B: a table in Markdown.

python benchmarks/recovery_memory.py
"""

import torch
from tabulate import tabulate
from transformers import LlamaConfig, LlamaForCausalLM

from policyprune.config.schema import Trained
from policyprune.recovery.memory import Sizes, Step, needed, sizes_of
from policyprune.recovery.options import Distill, Lora

SHAPES = {  # of LLaMA-3.2-1B, LLaMA-2-7B and 13B: hidden size, layers, heads, key/value heads, channels, vocabulary
    "1B": (2048, 16, 32, 8, 8192, 128256),
    "7B": (4096, 32, 32, 32, 11008, 32000),
    "13B": (5120, 40, 40, 40, 13824, 32000),
}
STEP = Step(batch=8, length=128, itemsize=2, bfloat16=True)
OPERATIONS = 0.4 * 989e12  # a second, of an H100 in bfloat16: assumed
TOKENS = 1_000_000


def sizes(name: str) -> Sizes:
    """Those of a model without weights."""
    hidden, layers, heads, groups, channels, vocabulary = SHAPES[name]
    with torch.device("meta"):
        return sizes_of(
            LlamaForCausalLM(
                LlamaConfig(
                    hidden_size=hidden,
                    num_hidden_layers=layers,
                    num_attention_heads=heads,
                    num_key_value_heads=groups,
                    intermediate_size=channels,
                    vocab_size=vocabulary,
                    tie_word_embeddings=name == "1B",
                )
            )
        )


def seconds(dense: Sizes, smaller: Sizes, options: Trained) -> float:
    """Of the operations of a million tokens: a forward pass is 2 per parameter, one back 4, to adapters alone 2."""
    forward = {own: 2 * (own.inside + own.head) for own in (dense, smaller)}
    passes = (2 if isinstance(options, Lora) else 3) + options.gradient_checkpointing
    return TOKENS * (forward[dense] + passes * forward[smaller]) / OPERATIONS


def main() -> None:
    """Print the table."""
    rows = []
    for name in SHAPES:
        dense = sizes(name)
        for keep in (0.8, 0.5):
            smaller = dense.kept(keep)
            models = STEP.itemsize * (dense.outside + dense.inside + smaller.inside)
            row = [name, keep, models]
            for kind in (Distill, Lora):
                row += [models + needed(smaller, kind(gradient_checkpointing=again), STEP) for again in (False, True)]
                row.append(seconds(dense, smaller, kind()))
            rows.append([*row[:2], *(f"{value / 1e9:.0f}" if value > 1e6 else f"{value:.0f}" for value in row[2:])])
    kinds = [title for kind in ("distill", "lora") for title in (kind, "checkpointing", "seconds")]
    headers = ["", "keep", "both models", *kinds]
    print(tabulate(rows, headers=headers, tablefmt="github"))


if __name__ == "__main__":
    main()
