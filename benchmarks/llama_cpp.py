"""llama.cpp by the npm package node-llama-cpp, which brings a binary; installed once into the user's cache folder."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from policyprune.storage.files import cache_folder

PACKAGE = "node-llama-cpp@3.22.1"
SCRIPT = Path(__file__).with_suffix(".mjs")


def install() -> Path:
    """The folder with the package; RuntimeError with the reason where it cannot be had."""
    folder = cache_folder() / PACKAGE.replace("@", "-")
    if (folder / "node_modules" / "node-llama-cpp").is_dir():
        return folder
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise RuntimeError("llama.cpp is run by node-llama-cpp, and there is no npm here")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", PACKAGE], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        shutil.rmtree(folder)
        raise RuntimeError(f"npm cannot install {PACKAGE}: {done.stderr.strip().splitlines()[-1]}")
    return folder


def ask(file: Path, **request: Any) -> dict[str, Any]:
    """Send one request: text, ids, continue, prefill, score, threads (see the script)."""
    folder = install()
    script = folder / SCRIPT.name
    shutil.copyfile(SCRIPT, script)  # imports are looked up beside the script
    done = subprocess.run(
        ["node", str(script), str(file.resolve()), json.dumps(request)], cwd=folder, capture_output=True, text=True
    )
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(f"llama.cpp cannot run {file.name}: {done.stderr.strip()[-500:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found
