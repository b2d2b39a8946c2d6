"""Files that are there whole or not at all, and what a full disk looks like."""

import errno
import os
import re
from pathlib import Path

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def write_whole(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Write atomically: a reader sees the old or the new content, never a part, also after a power failure.

    What was there before is kept as `keep`. OSError naming the file where the disk refuses; nothing is changed then.
    """
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def disk_trouble(error: BaseException) -> str | None:
    """One line when the disk refused to be written to (full, over quota, broken, read-only); None for other errors."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in DISK:
            return " ".join(str(error if isinstance(error, OSError) else cause).split())
        told = re.search(r"\(os error (\d+)\)", str(cause))  # of safetensors, which is written in Rust
        if told and int(told.group(1)) in DISK:
            return f"[Errno {told.group(1)}] {os.strerror(int(told.group(1)))}"
        cause = cause.__cause__ or cause.__context__
    return None
