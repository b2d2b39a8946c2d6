"""What others do with a checkpoint of unequal widths: pipelines, training, adapters, lm-eval."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Trainer, TrainingArguments, pipeline

from policyprune.surgery.checkpoint import save_checkpoint
from policyprune.surgery.shrink import shrink


@pytest.fixture
def folder(plain_subject: Any, masks: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    mask = masks["attention of the middle layer"](plain_subject.space)
    plain_subject.model.generation_config.max_new_tokens = 7
    smaller = shrink(plain_subject, mask)
    save_checkpoint(smaller, tiny_tokenizer, plain_subject.adapter, tmp_path / "pruned", max_shard_size="50KB")
    assert len(list((tmp_path / "pruned").glob("*.safetensors"))) > 1
    return tmp_path / "pruned"


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def test_a_pipeline_generates_with_the_settings_of_the_dense_model(folder: Path) -> None:
    assert GenerationConfig.from_pretrained(folder).max_new_tokens == 7
    generate = pipeline("text-generation", str(folder), trust_remote_code=True, device="cpu")
    text = generate("the lazy dog", do_sample=False, return_full_text=False)[0]["generated_text"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the lazy dog", return_tensors="pt")
    expected = loaded(folder).generate(**ids, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert text == tokenizer.decode(expected, skip_special_tokens=True)
    assert text


def rows() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(3, 200, (4, 12))
    return [{"input_ids": row, "labels": row} for row in ids]


def step(model: Any, folder: Path) -> Any:
    arguments = TrainingArguments(str(folder), max_steps=1, report_to=[], use_cpu=True, learning_rate=1e-2)
    trainer = Trainer(model, arguments, train_dataset=rows())  # type: ignore[arg-type]
    assert trainer.train().training_loss > 0
    return trainer


def test_the_trainer_trains_and_saves_it(folder: Path, tmp_path: Path) -> None:
    model = loaded(folder)
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    trainer = step(model, tmp_path / "trainer")
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, before)
    trainer.save_model(str(tmp_path / "saved"))
    again, ids = loaded(tmp_path / "saved"), torch.randint(3, 200, (2, 9))
    torch.testing.assert_close(again(ids).logits, model.eval()(ids).logits)


def test_lora_trains_on_it(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    modules = ["q_proj", "v_proj", "up_proj", "down_proj"]
    model = peft.get_peft_model(loaded(folder), peft.LoraConfig(r=2, target_modules=modules, task_type="CAUSAL_LM"))
    step(model, tmp_path / "trainer")
    assert any(bool(tensor.any()) for name, tensor in model.named_parameters() if "lora_B" in name)
    ids = torch.randint(3, 200, (2, 9))
    adapted = model.eval()(ids).logits
    torch.testing.assert_close(model.merge_and_unload()(ids).logits, adapted, rtol=1e-3, atol=1e-3)


def test_lm_eval_loads_it(folder: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=str(folder), trust_remote_code=True, device="cpu", dtype="float32", batch_size=1)
    request = Instance("loglikelihood", {}, ("the lazy", " dog"), 0)
    ((found, _),) = harness.loglikelihood([request], disable_tqdm=True)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), loaded(folder).eval()
    first, whole = (tokenizer(text)["input_ids"] for text in ("the lazy", "the lazy dog"))
    scores = model(torch.tensor([whole])).logits.log_softmax(-1)[0]
    expected = sum(float(scores[place - 1, whole[place]]) for place in range(len(first), len(whole)))
    assert found == pytest.approx(expected, rel=1e-4)
