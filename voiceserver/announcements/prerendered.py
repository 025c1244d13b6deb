"""Lines that are spoken once by the tts stage and kept: what a caller on a phone hears when the stage has no time for it.

Made on the first call that could need them. Rule: a line that could not be made is left out, and nobody waits for one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from voiceserver.errors import Refusal
from voiceserver_workers.ipc.messages import Record, RequestKind, ResultKind, StreamParams

if TYPE_CHECKING:
    from voiceserver.pool import LossReason, Pool, Stream

MAX_TRIES = 5


class Prerendered:
    """``made``: clips by name, as ``encode`` makes them of PCM16 at ``rate_hz``; others may add to it.
    ``language``: of the lines, "" for the voice's own. A ``StreamOwner``."""

    __slots__ = ("_encode", "_language", "_lines", "_pcm", "_rate_hz", "_stream", "_tries", "_unsent", "made")

    def __init__(
        self,
        lines: Mapping[str, str],
        rate_hz: int,
        encode: Callable[[bytes], bytes],
        language: str = "",
        made: dict[str, bytes] | None = None,
    ) -> None:
        self._language = language
        self._lines = list(lines.items())
        self._rate_hz = rate_hz
        self._encode = encode
        self._pcm: dict[int, bytearray] = {}
        self._unsent = list(range(len(self._lines)))
        self._tries = 0
        self._stream: Stream | None = None
        self.made: dict[str, bytes] = {} if made is None else made

    def make(self, pool: Pool | None) -> None:
        """Begin, unless it was begun. What a pool refused is begun again by the next call; what failed, a few times."""
        if self._stream is not None or pool is None or all(name in self.made for name, _ in self._lines):
            return
        if self._tries >= MAX_TRIES:
            return
        options: dict[str, str | int | float | bool] = {"language": self._language} if self._language else {}
        got = pool.try_open(self, StreamParams(rate_hz=self._rate_hz, options=options), key="clips")
        if isinstance(got, Refusal):
            return
        self._tries += 1
        self._stream = got
        self._pcm = {}
        self._unsent = [at for at, (name, _) in enumerate(self._lines) if name not in self.made]
        self._send()

    def _send(self) -> None:
        while self._stream is not None and self._unsent:
            at = self._unsent[0]
            if not self._stream.send(RequestKind.DATA, 1, at + 1, self._lines[at][1].encode()):
                return
            self._unsent.pop(0)

    def on_result(self, stage: str, record: Record) -> None:
        at = record.seq - 1
        if record.kind == ResultKind.AUDIO:
            self._pcm.setdefault(at, bytearray()).extend(record.payload)
        elif record.kind == ResultKind.DONE:
            pcm = self._pcm.pop(at, None)
            if pcm:
                self.made[self._lines[at][0]] = self._encode(bytes(pcm))
            if at == len(self._lines) - 1:
                self._end()
        elif record.kind == ResultKind.FAILED:
            self._end()

    def _end(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def on_stream_lost(self, stage: str, reason: LossReason) -> None:
        self._stream = None

    def on_room(self, stage: str) -> None:
        self._send()

    def on_tick(self) -> None:
        pass
