"""What `auto` comes to: the hub, a copy on this disk, or embedded files; an error of the hub is none of these."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from policyprune.errors import UsageError
from policyprune.storage import hub
from policyprune.storage.hub import NO_NETWORK, cached, decided, trouble


class ConnectError(Exception):
    """Named as that of the HTTP clients is."""


class ReadTimeout(Exception):  # noqa: N818
    """Named as that of the HTTP clients is."""


class Status(HfHubHTTPError):  # noqa: N818
    """An answer with an error."""

    def __init__(self, status: int) -> None:
        Exception.__init__(self, str(status))
        self.response = SimpleNamespace(status_code=status)  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _empty_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(hub.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub, "PAUSE", 0)
    trouble.cache_clear()
    yield
    trouble.cache_clear()


def answering(monkeypatch: pytest.MonkeyPatch, *answers: Exception | None) -> list[str]:
    """A hub that answers so, one after the other; who asked."""
    asked: list[str] = []

    class Api:
        def dataset_info(self, source: str, timeout: float) -> None:
            asked.append(source)
            answer = answers[min(len(asked), len(answers)) - 1]
            if answer is not None:
                raise answer

    monkeypatch.setattr(hub, "HfApi", Api)
    return asked


@pytest.mark.parametrize(
    ("answers", "expected", "questions"),
    [
        ([None], "hub", 1),
        ([ConnectError(), None], "hub", 2),
        ([ReadTimeout(), None], "hub", 2),
        ([Status(503), None], "hub", 2),
        ([Status(404)], "hub", 1),  # it is there, and will say so when it is asked for the data
        ([ConnectError()], "embedded", 2),
        ([OfflineModeIsEnabled("offline")], "embedded", 2),
    ],
)
def test_auto_is_the_hub_unless_there_is_no_network(
    monkeypatch: pytest.MonkeyPatch, answers: list[Any], expected: str, questions: int
) -> None:
    asked = answering(monkeypatch, *answers)
    assert [decided("task.origin", "auto", "owner/name") for _ in range(3)] == [expected] * 3
    assert asked == ["owner/name"] * questions, "once a process"


@pytest.mark.parametrize(
    ("error", "words"), [(Status(503), "status 503"), (Status(429), "status 429"), (ReadTimeout(), "ReadTimeout")]
)
def test_an_error_of_the_hub_is_not_taken_for_no_network(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    answering(monkeypatch, error)
    with pytest.raises(UsageError, match=rf"^task\.origin: .*'owner/name'.*\({words}\).*task\.origin=embedded$"):
        decided("task.origin", "auto", "owner/name")


@pytest.mark.parametrize("wanted", ["hub", "embedded"])
def test_what_is_stated_is_not_asked_for(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    asked = answering(monkeypatch, ConnectError())
    assert decided("task.origin", wanted, "owner/name") == wanted
    assert asked == []


def test_offline_nothing_is_asked_and_a_copy_on_this_disk_is_the_hubs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = answering(monkeypatch, None)
    monkeypatch.setattr(hub.constants, "is_offline_mode", lambda: True)
    assert trouble("owner/name") == NO_NETWORK
    assert decided("task.origin", "auto", "owner/name") == "embedded"
    (tmp_path / "datasets" / "owner___name").mkdir(parents=True)
    assert cached("owner/name")
    assert decided("task.origin", "auto", "owner/name") == "hub"
    assert asked == []
