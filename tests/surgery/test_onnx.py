"""ONNX graphs compute what torch computes, for any batch, length and past."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from encoders import encoder_tokenizer, make_encoder
from policyprune.errors import UsageError
from policyprune.models.adapter import adapt
from policyprune.models.examples import example
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of
from policyprune.surgery import onnx
from policyprune.surgery.onnx import Decoding, feed, graph_of, session, write_onnx
from policyprune.surgery.shrink import shrink

Killed = list[tuple[int, str]]


def pruned(model: Any, killed: Killed) -> Any:
    """Without a random part of its units, and without the named blocks."""
    adapter = adapt(model)
    space = space_of(adapter, ["attention", "ffn"])
    mask = torch.rand(space.n) < 0.7
    for key in killed:
        space.views(mask)[key].zero_()
    return shrink(PrunableModel(model, adapter, space), mask)


def test_a_decoder_with_its_cache(tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    model = pruned(tiny_llama(vocab_size=len(tiny_tokenizer)), [(0, "attention"), (1, "ffn")])
    write_onnx(model, tiny_tokenizer, tmp_path / "onnx")
    assert AutoConfig.from_pretrained(tmp_path / "onnx").model_type == "llama"
    assert GenerationConfig.from_pretrained(tmp_path / "onnx").eos_token_id == 1
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "onnx")("a dog")["input_ids"] == tiny_tokenizer("a dog")["input_ids"]
    )
    runtime = session(tmp_path / "onnx" / "model.onnx", threads=1)
    names = [own.name for own in runtime.get_inputs()]
    assert names[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert names[3:] == [f"past_key_values.{layer}.{part}" for layer in (1, 2) for part in ("key", "value")]
    graph = graph_of(model, adapt(model), False)
    assert isinstance(graph, Decoding)
    ids = torch.randint(3, len(tiny_tokenizer), (2, 11))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # padded on the left
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = model(ids, attention_mask=mask, position_ids=positions).logits
    first, *past = feed(runtime, (ids[:, :7], mask[:, :7], positions[:, :7], *graph.no_past(2)))
    second = feed(runtime, (ids[:, 7:], mask, positions[:, 7:], *past))[0]
    found = torch.cat([first, second], dim=1)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("head", "outputs"), [("SequenceClassification", 1), ("QuestionAnswering", 2)])
def test_an_encoder(head: str, outputs: int, tiny_tokenizer: Any, tmp_path: Path) -> None:
    tokenizer = encoder_tokenizer(tiny_tokenizer)
    model = pruned(make_encoder(head, vocab_size=len(tokenizer)), [(0, "attention"), (1, "ffn")])
    write_onnx(model, tokenizer, tmp_path / "onnx")
    runtime = session(tmp_path / "onnx" / "model.onnx", threads=1)
    pair = tokenizer([("the lazy dog", "a fox"), ("a mask", "the loss of a model")], padding=True, return_tensors="pt")
    arguments = tuple(pair[own.name] for own in runtime.get_inputs())
    assert len(arguments) == 3
    found, expected = feed(runtime, arguments), model(**pair).to_tuple()
    assert len(found) == outputs
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


def test_a_graph_that_disagrees_is_not_written(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pruned(tiny_llama(vocab_size=len(tiny_tokenizer), num_hidden_layers=1), [(0, "attention")])
    real = onnx.feed
    monkeypatch.setattr(onnx, "feed", lambda *given: [found * 1.01 for found in real(*given)])
    with pytest.raises(RuntimeError, match="something else than torch"):
        write_onnx(model, tiny_tokenizer, tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


def test_what_onnx_runtime_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="onnx cannot hold this model: Falcon's ALiBi"):
        onnx.check_onnx(example("falcon, ALiBi"))


def test_a_missing_package_is_named(tiny_llama: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(UsageError, match=r"onnx needs onnxscript: pip install 'policyprune\[onnx\]'"):
        onnx.check_onnx(tiny_llama())
