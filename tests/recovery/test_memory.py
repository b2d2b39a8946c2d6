"""What a training needs is what it takes on a tiny model, and options that are named make it fit."""

import re
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from policyprune.config.schema import Trained
from policyprune.errors import UsageError
from policyprune.recovery.material import Endless, Material
from policyprune.recovery.memory import Sizes, Step, check_fits, needed, sizes_of
from policyprune.recovery.options import Distill, Finetune, Lora
from policyprune.recovery.recover import Surroundings, teach

BATCH, LENGTH = 4, 64
SHORT = {"steps": 3, "evaluations": 1, "batch_size": BATCH, "length": LENGTH}
SEVEN = Sizes(  # LLaMA-2-7B
    outside=262_144_000 + 4096,
    inside=6_476_267_520,
    head=131_072_000,
    widths=32 * (4 * 8192 + 3 * 15104),
    layers=32,
    channels=4096,
    features=4 * 4096 + 4 * 11008,
    vocabulary=32000,
)
STEP = Step(batch=8, length=128, itemsize=2, bfloat16=True)


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside it, and how many there were at once; not those of models."""

    def __init__(self, *models: Any) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen = weakref.WeakSet[Any]()
        for model in models:
            self._seen.update(tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers()))

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._less, storage.nbytes())
        return out

    def _less(self, count: int) -> None:
        self.now -= count


@pytest.fixture(scope="module")
def material() -> Material:
    rows = list(torch.randint(0, 500, (40, LENGTH), generator=torch.Generator().manual_seed(0)))

    def collate(drawn: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.stack(drawn), "labels": torch.stack(drawn)}

    training = Endless(lambda number: iter(rows[1:]))
    return Material(training=training, held_out=rows[:1], collate=collate, labelled=False, facts={})


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        (Finetune(**SHORT, dtype="float32"), torch.float32),
        (Distill(**SHORT, dtype="float32"), torch.float32),
        (Distill(**SHORT, dtype="bfloat16"), torch.bfloat16),
        (Distill(**SHORT, dtype="bfloat16", gradient_checkpointing=True), torch.bfloat16),
        (Distill(**SHORT, dtype="float32", trained="blocks", accumulate=2), torch.float32),
        (Distill(**SHORT, dtype="float32", hidden_loss=1.0), torch.float32),
        (Lora(**SHORT, dtype="bfloat16"), torch.bfloat16),
        (Lora(**SHORT, dtype="bfloat16", gradient_checkpointing=True, task_loss=1), torch.bfloat16),
    ],
    ids=["finetune", "distill", "in bfloat16", "computed again", "blocks", "hidden", "lora", "lora, computed again"],
)
def test_what_is_needed_is_what_is_taken(
    options: Trained, dtype: torch.dtype, material: Material, tiny_llama: Any, folder: Path
) -> None:
    sizes = {"vocab_size": 500, "num_hidden_layers": 4, "intermediate_size": 192, "attn_implementation": "sdpa"}
    dense, model = (tiny_llama(seed, **sizes).to(dtype) for seed in (0, 1))
    around = Surroundings(
        teacher=dense if options.needs_teacher else None,
        folder=folder,
        keep=1.0,
        seed=0,
        report=lambda values, step: None,
    )
    with Peak(dense, model) as peak:
        teach(model, options, material, around)
    step = Step(batch=BATCH, length=LENGTH, itemsize=dtype.itemsize, bfloat16=options.dtype == "bfloat16")
    assert needed(sizes_of(model), options, step) == pytest.approx(peak.most, rel=0.08)


def test_sizes_of_a_known_model_without_weights() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert sizes_of(model) == SEVEN
    half = SEVEN.kept(0.5)
    assert (half.outside, half.inside, half.channels) == (SEVEN.outside, SEVEN.inside // 2, SEVEN.channels)


@given(
    keep=st.floats(0.1, 1.0),
    free=st.floats(1e9, 200e9),
    options=st.sampled_from([Finetune(), Distill(), Distill(trained="blocks"), Lora(accumulate=2, task_loss=1.0)]),
    batch=st.sampled_from([1, 8]),
    again=st.booleans(),
)
def test_an_option_that_is_named_makes_it_fit(
    keep: float, free: float, options: Trained, batch: int, again: bool
) -> None:
    sizes, step = SEVEN.kept(keep), replace(STEP, batch=batch)
    options = replace(options, gradient_checkpointing=again)
    try:
        check_fits(sizes, options, step, int(free))
    except UsageError as error:
        message = str(error)
    else:
        assert needed(sizes, options, step) <= free
        return
    assert needed(sizes, options, step) > free
    assert "\n" not in message
    words = dict(re.findall(r"recovery(?:\.(\w+))?=(\S+?)(?=[ ,])", message))
    if not words:
        assert "no option makes it fit" in message
        return
    kind = {"lora": Lora, None: type(options)}[words.pop("", None)]
    kept = {"batch_size": batch, "accumulate": options.accumulate, "gradient_checkpointing": again}
    told = {name: {"true": True}.get(value, int(value) if value.isdigit() else value) for name, value in words.items()}
    if kind is type(options):
        cured: Trained = replace(options, **kept | told)
    else:
        cured = kind(**kept | {"task_loss": None} | told)
    assert cured.needs_teacher == options.needs_teacher
    assert needed(sizes, cured, replace(step, batch=cured.batch_size or batch)) <= free
    assert cured.accumulate * (cured.batch_size or batch) == options.accumulate * batch


def test_seven_billion_parameters_on_one_gpu() -> None:
    """Beside the dense model all weights of the half are trained in 80 GB, of four fifths those of adapters, or on
    several GPUs."""
    for keep in (0.5, 0.8):
        smaller = SEVEN.kept(keep)
        free = int(80e9) - 2 * (SEVEN.outside + SEVEN.inside + smaller.inside)
        check_fits(smaller, Lora(), STEP, free)
        check_fits(smaller, Distill(), replace(STEP, processes=8), free)
        if keep == 0.5:
            check_fits(smaller, Distill(), STEP, free)
            continue
        with pytest.raises(UsageError, match=r"distill needs .* GB are free; use recovery=lora, which needs"):
            check_fits(smaller, Distill(), STEP, free)
