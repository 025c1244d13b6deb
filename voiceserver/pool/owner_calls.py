"""Calls the owners of streams. A fault of one owner is reported, and does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from voiceserver.pool import StreamOwner


class OwnerCalls:
    """``report`` is given what an owner raised."""

    __slots__ = ("report",)

    def __init__(self, report: Callable[[Exception], None]) -> None:
        self.report = report

    def call(self, callback: Callable[..., object], *args: object) -> None:
        try:
            callback(*args)
        except Exception as error:
            self.report(error)

    def tick(self, touched: Mapping[int, StreamOwner]) -> None:
        """The end of a burst of calls to these owners."""
        for owner in touched.values():
            self.call(owner.on_tick)
