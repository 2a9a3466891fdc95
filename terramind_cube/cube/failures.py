"""What could not be read, gathered while a cube is computed, wherever that is."""

from __future__ import annotations

import sys
import threading
import uuid
import warnings
import weakref
from typing import TYPE_CHECKING, Any, SupportsIndex

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["AssetError", "ReadFailures", "listen", "report_failure"]

_TOPIC = "terramind_cube-read-failures"
_LOCK = threading.Lock()
_LISTS: weakref.WeakValueDictionary[tuple[str, str], ReadFailures] = weakref.WeakValueDictionary()
"""By what a task reports to, and by the list's own identity: equal cubes hear the same tasks."""


class AssetError(OSError):
    """A file of an item is missing, damaged, or cannot be read.

    Parameters
    ----------
    href : str
        Address of the file.
    reason : str
        What is wrong with it.
    item_id : str, optional
        Item that refers to it, where it is known.
    asset : str, optional
        Key of the asset in the item.
    """

    def __init__(
        self, href: str, reason: str, item_id: str | None = None, asset: str | None = None
    ) -> None:
        owner = "" if item_id is None else f" of item {item_id!r}"
        key = "" if asset is None else f" (asset {asset!r})"
        super().__init__(f"Cannot read {href}{owner}{key}: {reason}")
        self.href, self.reason, self.item_id, self.asset = href, reason, item_id, asset

    def __reduce__(self) -> tuple[Any, ...]:
        # OSError would rebuild itself from the message alone.
        return AssetError, (self.href, self.reason, self.item_id, self.asset)


class ReadFailures(list[str]):
    """List of the assets that could not be read, which grows while a cube is computed.

    It stands in the attributes of a cube that was loaded with ``on_error="nodata"``; copies of the
    cube share it. Failures on the workers of a `distributed` cluster are fetched from its scheduler
    when the list is looked at.

    Parameters
    ----------
    token : str, optional
        Identity of the list, for tasks that report to it.
    """

    def __init__(self, token: str | None = None) -> None:
        super().__init__()
        self._places: set[str] = set()
        self.token = token or uuid.uuid4().hex
        self.topics = {self.token}
        _LISTS[self.token, self.token] = self

    def add(self, place: str, reason: str) -> None:
        """Note once that a place could not be read, with the first reason."""
        with _LOCK:
            if place not in self._places:
                self._places.add(place)
                self.append(f"{place}: {reason}")

    def fetch(self) -> None:
        """Take over what the workers of the current cluster have reported."""
        distributed = sys.modules.get("distributed")
        if distributed is None:
            return
        try:
            client = distributed.get_client()
            events = client.get_events(_TOPIC) if not client.asynchronous else ()
        except (ValueError, OSError, TimeoutError):  # no client, or one that is closing
            return
        for _, (token, place, reason) in events:
            if token in self.topics:
                self.add(place, reason)

    def __iter__(self) -> Iterator[str]:
        self.fetch()
        return super().__iter__()

    def __len__(self) -> int:
        self.fetch()
        return super().__len__()

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        self.fetch()
        return super().__getitem__(index)

    def __contains__(self, failure: object) -> bool:
        self.fetch()
        return super().__contains__(failure)

    def __repr__(self) -> str:
        self.fetch()
        return super().__repr__()

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadFailures:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def listen(token: str, topic: str) -> None:
    """Let a list also hear the tasks that report to `topic`, as other lists may.

    Tasks report to the name of what they compute and not to one list, since a name that differs
    from run to run would hide that the pixels are the same.
    """
    failures = _LISTS.get((token, token))
    if failures is not None:
        failures.topics.add(topic)
        _LISTS[topic, token] = failures


def report_failure(token: str, error: AssetError) -> None:
    """Add a failure to a list, which may live in another process."""
    place = f"{error.item_id}, {error.asset}, {error.href}"
    known = [failures for (topic, _), failures in list(_LISTS.items()) if topic == token]
    for failures in known:
        failures.add(place, error.reason)
    if known:
        return
    from distributed import get_worker

    # Without a worker, tasks run in processes of their own: nobody hears them.
    try:
        worker = get_worker()
    except ValueError:
        warnings.warn(
            f"{place} could not be read: {error.reason}. A process of its own cannot add it to "
            "read_failures; compute with threads or a distributed cluster.",
            UserWarning,
            stacklevel=2,
        )
        return
    worker.log_event(_TOPIC, (token, place, error.reason))
