"""What a text that is published says of local files: their names, and nothing of where they lie or whose they are."""

import re
from pathlib import Path

PACKAGE = "pkg://"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
HUB_FILE = re.compile(r"\w[\w.-]*/\w[\w.-]*/[\w./-]+\.gguf")
LOCAL = re.compile(r"[/\\~.]|[A-Za-z]:[/\\]|\w+://")  # how a path begins that is none of the hub's
QUOTED = re.compile(r"(['\"`])((?:~|\.|[A-Za-z]:)?[/\\].*?)\1")
BARE = re.compile(r"(?<![\w:/.~-])(?:~|\.{1,2}|[A-Za-z]:)?(?:[/\\][^\s/\\'\"`,;:()]+)+[/\\]?")


def of_hub(source: str) -> bool:
    """Whether a source is a model or a file of the hub, and none on this disk."""
    return bool(HUB_ID.fullmatch(source) or HUB_FILE.fullmatch(source)) and not Path(source).exists()


def source_name(source: str, name: str) -> str:
    """A source that everyone can read, otherwise `name`."""
    return source if source.startswith(PACKAGE) or of_hub(source) else name


def argument(text: str) -> str:
    """An argument of the command line with the names of local files instead of their paths."""
    return "".join(_word(word) for word in re.split(r"([\[\]{},'\"=]|(?<=\w\w):(?!//))", text))


def prose(text: str) -> str:
    """The same of a sentence, where only what begins like a path is known to be one."""
    quoted = QUOTED.sub(lambda found: f"{found[1]}{_name(found[2])}{found[1]}", text)
    return BARE.sub(lambda found: _name(found[0]), quoted)


def _word(word: str) -> str:
    if word.startswith(PACKAGE) or not re.search(r"[/\\]", word) or of_hub(word):
        return word
    local = LOCAL.match(word) or word.count("/") > 1 or Path(word).suffix or Path(word).exists()
    return _name(word) if local else word


def _name(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path
