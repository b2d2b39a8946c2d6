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

from policyprune.errors import UsageError
from policyprune.models.modelling_file import brings_only_ours
from policyprune.surgery.checkpoint import auto_class, save_checkpoint
from policyprune.surgery.equivalence import Probe, gap, masks
from policyprune.surgery.shrink import shrink
from policyprune.tasks import by_length
from policyprune.tasks.labelled import Encoded

BATCH = 32  # examples at a time
LOAD = """
import json, math, sys
sys.modules["policyprune"] = None  # importing it is an error from here on
import torch, transformers
from safetensors.torch import load_file, save_file

folder, data, kind, dtype, device, batch, trusted = sys.argv[1:]
model = getattr(transformers, kind).from_pretrained(folder, dtype=dtype, trust_remote_code=trusted == "True")
model.to(device).eval()
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
outputs = {}
for number, inputs in batches.items():
    out = model(**inputs)
    tensors = {name: value for name, value in out.items() if torch.is_tensor(value)}  # and no cache of keys and values
    outputs.update({f"{number}.{name}": value.float().cpu().contiguous() for name, value in tensors.items()})
save_file(outputs, data)
"""
FIND = """
import importlib.util
for name in ("torch", "transformers", "safetensors"):
    if importlib.util.find_spec(name) is None:
        raise ImportError(f"no {name}")
"""
EVERY = """
import json, sys
sys.modules["policyprune"] = None  # importing it is an error from here on
import torch, transformers
from safetensors.torch import load_file, save_file

data, *jobs = sys.argv[1:]
torch.set_grad_enabled(False)
ids, logits = load_file(data), {}
for folder, kind, trusted in zip(jobs[::3], jobs[1::3], jobs[2::3]):
    model = getattr(transformers, kind).from_pretrained(folder, trust_remote_code=trusted == "True").eval()
    logits[folder] = model(input_ids=ids[folder]).logits.float().contiguous()
save_file(logits, data)
"""


def check_fresh_process() -> None:
    """UsageError where a fresh process would find no torch or transformers. Imports neither, takes 0.1 s."""
    try:
        _python(FIND)
    except RuntimeError as error:
        reason = str(error).rpartition(": ")[2]
        raise UsageError(
            f"evaluation.fresh_process: {sys.executable} cannot load a checkpoint by itself ({reason}), set it to false"
        ) from error


def perplexity_elsewhere(
    checkpoint: Path, windows: Mapping[int, Tensor], like: PreTrainedModel, batch_tokens: int, trusted: bool = False
) -> dict[int, float | None]:
    """Perplexity by window length, None where it is not finite, computed there by transformers and torch alone.

    RuntimeError with the cause.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "windows.safetensors"
        save_file({str(length): ids.clone() for length, ids in windows.items()}, file)
        printed = _run(LOAD + PERPLEXITY, checkpoint, file, like, batch_tokens, trusted)
    return {int(length): value for length, value in json.loads(printed.splitlines()[-1]).items()}


def outputs_elsewhere(
    checkpoint: Path, examples: Encoded, names: tuple[str, ...], like: PreTrainedModel, trusted: bool = False
) -> list[tuple[Tensor, ...]]:
    """The named outputs of each example, in order, computed there; RuntimeError with the cause."""
    batches = by_length(examples.lengths, BATCH)
    tensors = {
        f"{number}.{name}": tensor.contiguous()
        for number, rows in enumerate(batches)
        for name, tensor in examples.inputs(rows).items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "batches.safetensors"
        save_file(tensors, file)
        _run(LOAD + OUTPUTS, checkpoint, file, like, BATCH, trusted)
        outputs = load_file(file)
    outputs_of_rows: list[tuple[Tensor, ...]] = [()] * len(examples.lengths)
    for number, rows in enumerate(batches):
        for position, row in enumerate(rows.tolist()):
            outputs_of_rows[row] = tuple(outputs[f"{number}.{name}"][position] for name in names)
    return outputs_of_rows


def logits_elsewhere(checkpoints: Mapping[Path, tuple[str, Tensor]]) -> dict[Path, Tensor]:
    """Logits of several checkpoints, each with its auto class and token ids (B, T), computed in one process there.

    RuntimeError with the cause.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "ids.safetensors"
        save_file({str(folder): ids.clone() for folder, (_, ids) in checkpoints.items()}, file)
        jobs = [(str(folder), kind, str(brings_only_ours(folder))) for folder, (kind, _) in checkpoints.items()]
        _python(EVERY, str(file), *(word for job in jobs for word in job))
        logits = load_file(file)
    return {folder: logits[str(folder)] for folder in checkpoints}


def reloaded_gaps(probes: Mapping[str, Probe]) -> dict[str, float]:
    """The largest gap over all masks: saved and loaded where policyprune cannot be imported, against masked.

    RuntimeError where a checkpoint does not load.
    """
    expected: dict[Path, tuple[str, Tensor]] = {}
    jobs: dict[Path, tuple[str, Tensor]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, probe) in enumerate(probes.items()):
            for index, mask in enumerate(masks(probe).values()):
                folder = Path(scratch) / f"model{number}-{index}"
                smaller = shrink(probe, mask)
                save_checkpoint(smaller, None, probe.adapter, folder)
                jobs[folder] = auto_class(smaller), probe.ids
                expected[folder] = name, probe.masked_outputs(mask)
        logits = logits_elsewhere(jobs)
    gaps = dict.fromkeys(probes, 0.0)
    for folder, (name, masked) in expected.items():
        gaps[name] = max(gaps[name], gap(logits[folder], masked))
    return gaps


def _run(script: str, checkpoint: Path, data: Path, like: PreTrainedModel, batch: int, trusted: bool) -> str:
    """`trusted`: the config gives leave to run the checkpoint's own code; what we wrote ourselves needs none."""
    dtype = str(like.dtype).removeprefix("torch.")
    arguments = [str(checkpoint), str(data), auto_class(like), dtype, str(torch.device(like.device)), str(batch)]
    return _python(script, *arguments, str(trusted or brings_only_ours(checkpoint)))


def _python(script: str, *arguments: str) -> str:
    """Run a script apart from the current folder and the user's settings, with the packages that this process finds."""
    packages = [folder for folder in sys.path if folder]  # those of PYTHONPATH and the user's own would be missing
    command = [sys.executable, "-I", "-c", f"import sys\nsys.path[:] = {packages!r}\n{script}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the checkpoint does not load in a fresh process: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout
