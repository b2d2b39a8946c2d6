"""The command in processes of its own that start at once: forked from one that has imported everything."""

import atexit
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from harness import clean_environment

SERVER = """
import json, os, resource, signal, sys
import policyprune.commands.run
from policyprune import cli

for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["cwd"])
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    if job["largest_file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"],) * 2)
    exec(job["first"])
    sys.argv = ["policyprune", *job["arguments"]]
    status = 1
    try:
        cli.main()
    except SystemExit as ended:
        status = ended.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
"""


class Commands:
    """Starts the command, and tells how it ended."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean_environment(),
            text=True,
        )

    def start(self, *arguments: str, cwd: Path, largest_file: int = 0, first: str = "") -> int:
        """Process id of the command in `cwd`, which gets files `stdout` and `stderr`; `first` is run before it."""
        job = {"arguments": arguments, "cwd": str(cwd), "largest_file": largest_file, "first": first}
        return self._ask({**job, "environment": clean_environment()})

    def wait(self, pid: int) -> int:
        """Exit code, or minus the signal that ended it."""
        return self._ask({"wait": pid})

    def run(self, *arguments: str, cwd: Path, largest_file: int = 0, first: str = "") -> int:
        """Start and wait."""
        return self.wait(self.start(*arguments, cwd=cwd, largest_file=largest_file, first=first))

    def close(self) -> None:
        """End the server."""
        self._server.communicate(timeout=60)

    def _ask(self, job: dict[str, object]) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


@cache
def shared() -> Commands:
    """Those of all tests."""
    started = Commands()
    atexit.register(started.close)
    return started


def forked(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """`harness.console` without the seconds in which Python imports torch and transformers."""
    status = shared().run(*arguments, cwd=cwd)
    shown = {name: (cwd / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")}
    for name in shown:
        (cwd / name).unlink()
    return subprocess.CompletedProcess(arguments, status, **shown)


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
