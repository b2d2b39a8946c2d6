"""Load a checkpoint as anyone would, in a process where policyprune cannot be imported, and measure it there."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

SCRIPT = """
import json, math, sys
sys.modules["policyprune"] = None  # importing it is an error from here on
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

folder, windows, dtype, device, batch = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=True).to(device).eval()
result = {}
with torch.inference_mode():
    for length, ids in load_file(windows).items():
        total = count = 0
        for rows in ids.split(max(1, int(batch) // ids.shape[1])):
            rows = rows.to(device)
            logits = model(rows).logits[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
            total, count = total + loss.double().sum().item(), count + loss.numel()
        result[length] = math.exp(total / count)
print(json.dumps(result))
"""


def perplexity_elsewhere(
    checkpoint: Path, windows: Mapping[int, Tensor], dtype: str, device: str, batch_tokens: int
) -> dict[int, float]:
    """Perplexity by window length of a checkpoint, loaded with transformers alone; RuntimeError with the cause."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "windows.safetensors"
        save_file({str(length): ids.clone() for length, ids in windows.items()}, file)
        command = [sys.executable, "-I", "-c", SCRIPT, str(checkpoint), str(file), dtype, device, str(batch_tokens)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the checkpoint does not load in a fresh process: {done.stderr.strip().splitlines()[-1]}")
    return {int(length): value for length, value in json.loads(done.stdout.splitlines()[-1]).items()}
