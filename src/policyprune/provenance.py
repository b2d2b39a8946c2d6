"""What a number was measured on and with: the machine, the versions of the libraries, the state of the source."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent


def hardware(device: str, threads: int) -> dict[str, Any]:
    """The machine in words."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    except OSError:
        pass
    return {
        "device": device,
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.system(),
    }


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each package, None where it is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def git_state() -> dict[str, Any]:
    """Commit of the source tree that policyprune runs from and whether it has changes; nulls outside a checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=SOURCE, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    inside = git("ls-files", "--error-unmatch", __file__) is not None
    status = git("status", "--porcelain", "--untracked-files=no") if inside else None
    return {"commit": git("rev-parse", "HEAD") if inside else None, "dirty": None if status is None else bool(status)}


def source_hash() -> str:
    """SHA-256 of this package's source, which measures."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE.rglob("*.py")):
        digest.update(f"{path.relative_to(SOURCE)}\n".encode() + path.read_bytes())
    return digest.hexdigest()
