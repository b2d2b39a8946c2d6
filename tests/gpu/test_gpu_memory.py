"""On a GPU: what a training is said to need is what its allocator gives out."""

from pathlib import Path
from typing import Any

import pytest
import torch

import policyprune as pp
from policyprune.config.schema import Trained
from policyprune.recovery.material import Endless, Material
from policyprune.recovery.memory import Step, needed, sizes_of
from policyprune.recovery.recover import Surroundings, teach

pytestmark = pytest.mark.gpu
BATCH, LENGTH = 8, 128
SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 64,
    "vocab_size": 32000,
    "attn_implementation": "sdpa",
}
SHORT = {"steps": 3, "evaluations": 1, "batch_size": BATCH, "length": LENGTH, "dtype": "bfloat16"}


@pytest.mark.parametrize(
    "options",
    [pp.Distill(**SHORT), pp.Distill(**SHORT, gradient_checkpointing=True), pp.Finetune(**SHORT)],
    ids=["distill", "computed again", "finetune"],
)
def test_what_is_needed_is_given_out(options: Trained, tiny_llama: Any, gpu: torch.device, tmp_path: Path) -> None:
    rows = list(torch.randint(0, 32000, (8 * BATCH, LENGTH), generator=torch.Generator().manual_seed(0)))

    def collate(drawn: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.stack(drawn), "labels": torch.stack(drawn)}

    material = Material(
        training=Endless(lambda number: iter(rows)), held_out=rows[:1], collate=collate, labelled=False, facts={}
    )
    dense, model = (tiny_llama(seed, **SIZES).to(gpu, torch.bfloat16) for seed in (0, 1))
    around = Surroundings(
        teacher=dense if options.needs_teacher else None,
        folder=tmp_path,
        keep=1.0,
        seed=0,
        report=lambda values, step: None,
    )
    before = torch.cuda.memory_allocated(gpu)
    torch.cuda.reset_peak_memory_stats(gpu)
    teach(model, options, material, around)
    taken = torch.cuda.max_memory_allocated(gpu) - before
    step = Step(batch=BATCH, length=LENGTH, itemsize=2, bfloat16=True)
    assert needed(sizes_of(model), options, step) == pytest.approx(taken, rel=0.15)
