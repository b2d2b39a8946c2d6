"""What is saved loads without policyprune, and computes the same."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from policyprune.models.adapter import adapt
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of
from policyprune.surgery import checkpoint
from policyprune.surgery.checkpoint import save_checkpoint
from policyprune.surgery.shrink import shrink

STRANGER = """
import sys
sys.modules["policyprune"] = None  # as on a machine that never heard of it
import torch
from transformers import AutoModelForCausalLM
folder, ids, out = sys.argv[1:]
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
torch.save(model(torch.load(ids)).logits.detach(), out)
"""


def saved(subject: Any, mask: torch.Tensor, tokenizer: Any, folder: Path) -> Any:
    """Shrink, save, and return the shrunk model."""
    smaller = shrink(subject, mask)
    save_checkpoint(smaller, tokenizer, subject.adapter, folder)
    return smaller


def reloaded(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()


def config_of(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    assert isinstance(config, dict)
    return config


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failing_once(rename: Callable[[Path, Path], Path], target: Path) -> Callable[[Path, Path], Path]:
    """`Path.rename`, but the first time that something is to be called `target` it fails."""
    failures = [OSError("disk full")]

    def move(self: Path, wanted: Path) -> Path:
        if wanted == target and failures:
            raise failures.pop()
        return rename(self, wanted)

    return move


def test_reloaded_equals_masked(
    subject: Any, make_mask: Any, tiny_tokenizer: Any, tmp_path: Path, assert_same: Any
) -> None:
    mask = make_mask(subject.space)
    smaller = saved(subject, mask, tiny_tokenizer, tmp_path / "pruned")
    again = reloaded(tmp_path / "pruned")
    assert_same(again(subject.ids).logits, subject.masked_logits(mask))
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in smaller.named_parameters()}


def test_a_process_that_never_heard_of_policyprune_loads_it(
    plain_subject: Any, masks: Any, tiny_tokenizer: Any, tmp_path: Path, assert_same: Any
) -> None:
    mask = masks["first layer"](plain_subject.space)
    saved(plain_subject, mask, tiny_tokenizer, tmp_path / "pruned")
    torch.save(plain_subject.ids, tmp_path / "ids.pt")
    files = [str(tmp_path / name) for name in ("pruned", "ids.pt", "logits.pt")]
    subprocess.run([sys.executable, "-I", "-c", STRANGER, *files], check=True, capture_output=True)
    assert_same(torch.load(tmp_path / "logits.pt"), plain_subject.masked_logits(mask))


@pytest.mark.parametrize("name", ["random 1", "first layer", "all attention"])
def test_a_reloaded_model_generates_with_the_cache(
    plain_subject: Any, masks: Any, tiny_tokenizer: Any, tmp_path: Path, name: str
) -> None:
    smaller = saved(plain_subject, masks[name](plain_subject.space), tiny_tokenizer, tmp_path / "pruned")
    common: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    generated = reloaded(tmp_path / "pruned").generate(plain_subject.ids, use_cache=True, **common)
    assert torch.equal(generated, smaller.generate(plain_subject.ids, use_cache=False, **common))


def test_equal_widths_need_no_code_of_ours(
    plain_subject: Any, masks: Any, tiny_tokenizer: Any, tmp_path: Path, assert_same: Any
) -> None:
    mask = masks["equal widths"](plain_subject.space)
    saved(plain_subject, mask, tiny_tokenizer, tmp_path / "pruned")
    config = config_of(tmp_path / "pruned")
    assert "auto_map" not in config
    assert "per_layer_config" not in config
    assert (config["num_key_value_heads"], config["num_attention_heads"], config["intermediate_size"]) == (2, 4, 20)
    assert not list((tmp_path / "pruned").glob("*.py"))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert type(stock) is LlamaForCausalLM
    assert_same(stock(plain_subject.ids).logits, plain_subject.masked_logits(mask))


def test_unequal_widths_are_stated_per_layer(
    plain_subject: Any, masks: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    mask = masks["attention of the middle layer"](plain_subject.space)
    saved(plain_subject, mask, tiny_tokenizer, tmp_path / "pruned")
    config = config_of(tmp_path / "pruned")
    keys = {"attention": "num_key_value_heads", "ffn": "intermediate_size"}
    for (layer, kind), view in plain_subject.space.views(mask).items():
        stated = config["per_layer_config"].get(str(layer), {}).get(keys[kind], config.get(keys[kind]))
        assert stated == int(view.sum())
    assert (tmp_path / "pruned" / "modeling_pruned.py").is_file()


def test_without_trust_the_code_is_not_run(
    plain_subject: Any, masks: Any, tiny_tokenizer: Any, tmp_path: Path, assert_same: Any
) -> None:
    mask = masks["random 1"](plain_subject.space)
    saved(plain_subject, mask, tiny_tokenizer, tmp_path / "pruned")
    with pytest.raises((ValueError, RuntimeError)):
        AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", trust_remote_code=False)


def test_the_tokenizer_is_saved_along(plain_subject: Any, masks: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    saved(plain_subject, masks["random 1"](plain_subject.space), tiny_tokenizer, tmp_path / "pruned")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pruned", trust_remote_code=True)
    text = "the lazy dog"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]


def test_shards_load_like_a_single_file(
    plain_subject: Any, masks: Any, tiny_tokenizer: Any, tmp_path: Path, assert_same: Any
) -> None:
    mask, folder = masks["random 2"](plain_subject.space), tmp_path / "pruned"
    smaller = shrink(plain_subject, mask)
    save_checkpoint(smaller, tiny_tokenizer, plain_subject.adapter, folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert_same(reloaded(folder)(plain_subject.ids).logits, plain_subject.masked_logits(mask))


def test_tied_embeddings_stay_tied(tiny_llama: Any, plain_subject: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=True, vocab_size=len(tiny_tokenizer))
    adapter = adapt(model)
    mask = torch.rand(plain_subject.space.n) < 0.6
    smaller = shrink(PrunableModel(model, adapter, plain_subject.space), mask)
    assert smaller.lm_head.weight is smaller.model.embed_tokens.weight
    save_checkpoint(smaller, tiny_tokenizer, adapter, tmp_path / "pruned")
    again = reloaded(tmp_path / "pruned")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    torch.testing.assert_close(again(plain_subject.ids).logits, smaller(plain_subject.ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(
    plain_subject: Any, masks: Any, tiny_tokenizer: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    plain_subject.model.to(dtype)
    saved(plain_subject, masks["attention of the middle layer"](plain_subject.space), tiny_tokenizer, tmp_path / "p")
    assert {parameter.dtype for parameter in reloaded(tmp_path / "p").parameters()} == {dtype}


@pytest.mark.parametrize(("name", "unused_norms"), [("random 1", []), ("attention of the middle layer", [1])])
def test_a_reloaded_model_trains(
    subject: Any, masks: Any, tiny_tokenizer: Any, tmp_path: Path, name: str, unused_norms: list[int]
) -> None:
    saved(subject, masks[name](subject.space), tiny_tokenizer, tmp_path / "pruned")
    model = reloaded(tmp_path / "pruned").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = model(subject.ids, labels=subject.ids).loss
    before.backward()
    without_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without_gradient == {f"model.layers.{layer}.input_layernorm.weight" for layer in unused_norms}
    optimizer.step()
    assert model(subject.ids, labels=subject.ids).loss < before


@pytest.mark.parametrize("units", [("attention", "ffn"), ("attention",), ("ffn",)])
def test_a_reloaded_model_can_be_pruned_and_saved_again(
    plain_subject: Any, masks: Any, tiny_tokenizer: Any, tmp_path: Path, assert_same: Any, units: tuple[str, ...]
) -> None:
    saved(plain_subject, masks["attention of the middle layer"](plain_subject.space), tiny_tokenizer, tmp_path / "one")
    half = reloaded(tmp_path / "one")
    adapter = adapt(half)
    space = space_of(adapter, units)
    smaller = shrink(PrunableModel(half, adapter, space), torch.rand(space.n) < 0.7)
    save_checkpoint(smaller, tiny_tokenizer, adapter, tmp_path / "two")
    assert_same(reloaded(tmp_path / "two")(plain_subject.ids).logits, smaller(plain_subject.ids).logits)


@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_a_model_with_nothing_left_of_a_kind_can_be_saved_again(
    plain_subject: Any, tiny_tokenizer: Any, tmp_path: Path, assert_same: Any, kind: str
) -> None:
    mask = torch.ones(plain_subject.space.n, dtype=torch.bool)
    for (_, own), view in plain_subject.space.views(mask).items():
        view[:] = own != kind
    saved(plain_subject, mask, tiny_tokenizer, tmp_path / "one")
    empty = reloaded(tmp_path / "one")
    save_checkpoint(empty, tiny_tokenizer, adapt(empty), tmp_path / "two")
    assert_same(reloaded(tmp_path / "two")(plain_subject.ids).logits, plain_subject.masked_logits(mask))


def test_a_reloaded_model_can_be_pruned_to_equal_widths(
    plain_subject: Any, masks: Any, tiny_tokenizer: Any, tmp_path: Path, assert_same: Any
) -> None:
    saved(plain_subject, masks["random 1"](plain_subject.space), tiny_tokenizer, tmp_path / "one")
    half = reloaded(tmp_path / "one")
    adapter = adapt(half)
    space = space_of(adapter, ["attention", "ffn"])
    mask = torch.zeros(space.n, dtype=torch.bool)
    for (_, kind), view in space.views(mask).items():
        view[: 1 if kind == "attention" else 10] = True
    smaller = shrink(PrunableModel(half, adapter, space), mask)
    save_checkpoint(smaller, tiny_tokenizer, adapter, tmp_path / "two")
    assert config_of(tmp_path / "two")["architectures"] == ["LlamaForCausalLM"]
    assert not list((tmp_path / "two").glob("*.py"))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    assert_same(stock(plain_subject.ids).logits, smaller(plain_subject.ids).logits)


def test_a_new_checkpoint_replaces_the_old_one_as_a_whole(
    plain_subject: Any, masks: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    saved(plain_subject, masks["random 1"](plain_subject.space), tiny_tokenizer, tmp_path / "pruned")
    saved(plain_subject, masks["equal widths"](plain_subject.space), tiny_tokenizer, tmp_path / "pruned")
    assert not list((tmp_path / "pruned").glob("*.py"))
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


@pytest.mark.parametrize("failing", ["tokenizer", "modelling file", "rename"])
def test_a_failure_leaves_the_old_checkpoint_and_no_scratch(
    plain_subject: Any,
    masks: Any,
    tiny_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
) -> None:
    saved(plain_subject, masks["random 1"](plain_subject.space), tiny_tokenizer, tmp_path / "pruned")
    before = contents(tmp_path / "pruned")

    def fails(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    if failing == "tokenizer":
        monkeypatch.setattr(type(tiny_tokenizer), "save_pretrained", fails)
    elif failing == "modelling file":
        monkeypatch.setattr(checkpoint, "_add_modelling_file", fails)
    else:
        monkeypatch.setattr(Path, "rename", failing_once(Path.rename, tmp_path / "pruned"))
    with pytest.raises(OSError, match="disk full"):
        saved(plain_subject, masks["random 2"](plain_subject.space), tiny_tokenizer, tmp_path / "pruned")
    monkeypatch.undo()
    assert contents(tmp_path / "pruned") == before
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]
