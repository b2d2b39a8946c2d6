"""Load a checkpoint as anyone would, in a process where policyprune cannot be imported, and run it there."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.surgery.checkpoint import auto_class
from policyprune.tasks import by_length
from policyprune.tasks.encoded import Encoded

LOAD = """
import json, math, sys
sys.modules["policyprune"] = None  # importing it is an error from here on
import torch, transformers
from safetensors.torch import load_file, save_file

folder, data, kind, dtype, device, batch = sys.argv[1:]
model = getattr(transformers, kind).from_pretrained(folder, dtype=dtype, trust_remote_code=True).to(device).eval()
torch.set_grad_enabled(False)
"""
PERPLEXITY = """
result = {}
for length, ids in load_file(data).items():
    total = count = 0
    for rows in ids.split(max(1, int(batch) // ids.shape[1])):
        rows = rows.to(device)
        logits = model(rows).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
        total, count = total + loss.double().sum().item(), count + loss.numel()
    mean = total / count
    result[length] = math.exp(mean) if mean < 700 else None  # null where it is not finite
print(json.dumps(result))
"""
OUTPUTS = """
batches = {}
for key, value in load_file(data).items():
    number, name = key.split(".", 1)
    batches.setdefault(number, {})[name] = value.to(device)
found = {}
for number, inputs in batches.items():
    out = model(**inputs)
    found.update({f"{number}.{name}": out[name].float().cpu().contiguous() for name in out.keys()})
save_file(found, data)
"""
EVERY = """
import json, sys
sys.modules["policyprune"] = None  # importing it is an error from here on
import torch, transformers
from safetensors.torch import load_file, save_file

data, *jobs = sys.argv[1:]
torch.set_grad_enabled(False)
ids, found = load_file(data), {}
for folder, kind in zip(jobs[::2], jobs[1::2]):
    model = getattr(transformers, kind).from_pretrained(folder, trust_remote_code=True).eval()
    found[folder] = model(input_ids=ids[folder]).logits.float().contiguous()
save_file(found, data)
"""


def perplexity_elsewhere(
    checkpoint: Path, windows: Mapping[int, Tensor], like: PreTrainedModel, batch_tokens: int
) -> dict[int, float | None]:
    """Perplexity by window length, None where it is not finite, computed there by transformers and torch alone.

    RuntimeError with the cause.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "windows.safetensors"
        save_file({str(length): ids.clone() for length, ids in windows.items()}, file)
        printed = _run(LOAD + PERPLEXITY, checkpoint, file, like, batch_tokens)
    return {int(length): value for length, value in json.loads(printed.splitlines()[-1]).items()}


def outputs_elsewhere(
    checkpoint: Path, examples: Encoded, names: tuple[str, ...], like: PreTrainedModel, batch: int = 32
) -> list[tuple[Tensor, ...]]:
    """The named outputs of each example, in order, computed there; RuntimeError with the cause."""
    batches = by_length(examples.lengths, batch)
    tensors = {
        f"{number}.{name}": tensor.contiguous()
        for number, rows in enumerate(batches)
        for name, tensor in examples.inputs(rows).items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "batches.safetensors"
        save_file(tensors, file)
        _run(LOAD + OUTPUTS, checkpoint, file, like, batch)
        found = load_file(file)
    rows: list[tuple[Tensor, ...]] = [()] * len(examples.lengths)
    for number, own in enumerate(batches):
        for position, row in enumerate(own.tolist()):
            rows[row] = tuple(found[f"{number}.{name}"][position] for name in names)
    return rows


def logits_elsewhere(checkpoints: Mapping[Path, tuple[str, Tensor]]) -> dict[Path, Tensor]:
    """Logits of several checkpoints, each with its auto class and token ids (B, T), computed in one process there.

    RuntimeError with the cause.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "ids.safetensors"
        save_file({str(folder): ids.clone() for folder, (_, ids) in checkpoints.items()}, file)
        _python(EVERY, str(file), *(word for folder, (kind, _) in checkpoints.items() for word in (str(folder), kind)))
        found = load_file(file)
    return {folder: found[str(folder)] for folder in checkpoints}


def _run(script: str, checkpoint: Path, data: Path, like: PreTrainedModel, batch: int) -> str:
    dtype = str(like.dtype).removeprefix("torch.")
    arguments = [str(checkpoint), str(data), auto_class(like), dtype, str(torch.device(like.device)), str(batch)]
    return _python(script, *arguments)


def _python(script: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-I", "-c", script, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the checkpoint does not load in a fresh process: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout
