"""Tiny random models and a tiny tokenizer, made here from configs alone: no test needs a download."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
_MODULES = tempfile.TemporaryDirectory(prefix="policyprune-tests-")
os.environ["HF_MODULES_CACHE"] = _MODULES.name  # where transformers copies a checkpoint's own code
os.environ.setdefault("POLICYPRUNE_CACHE", _MODULES.name)  # nothing is left of tests in the user's

TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Structured pruning removes whole heads and channels; what remains is a smaller model.",
    "A mask of zeros and ones decides what stays. The loss of the masked model decides on the mask.",
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
VOCABULARY = 300
WEIGHT_SCALE = 4.0  # on the initialisation of transformers (deviation 0.02), so that a mask shows in the logits

settings.register_profile("policyprune", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("policyprune")

MakeLlama = Callable[..., Any]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random numbers in every test, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The GPU of tests under the marker `gpu`."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return torch.device("cuda")


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Hydra sets up the root logger; put it back as it was."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def make_tokenizer() -> Any:
    """Byte-level BPE with `VOCABULARY` entries at most, and tokens for BOS, EOS and padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **SPECIAL)


def make_llama(seed: int = 0, **changes: Any) -> Any:
    """A random float32 LlamaForCausalLM in eval mode; `changes` go to its config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "attn_implementation": "eager",
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(sizes | changes))).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # transformers starts them at zero, where they would prove nothing
            parameter.normal_(std=0.1)
        elif parameter.dim() == 2:
            parameter.mul_(WEIGHT_SCALE)
    return model


@pytest.fixture(scope="session")
def tiny_llama() -> MakeLlama:
    """The factory `make_llama`: each call gives a fresh model, equal for equal arguments."""
    return make_llama


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A tokenizer whose vocabulary fits `tiny_llama`."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A folder with a tiny model and its tokenizer, as `from_pretrained` wants them. Not to be written to."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-llama"
    make_llama(vocab_size=len(tiny_tokenizer)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
