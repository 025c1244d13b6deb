"""A sound card that is not there: whisper-live's client imports PyAudio, which needs one to be built. What it plays is lost."""

from __future__ import annotations

paInt16 = 8


class _Stream:
    def write(self, data: bytes) -> None:
        pass

    def stop_stream(self) -> None:
        pass

    def close(self) -> None:
        pass


class PyAudio:
    def open(self, *, output: bool = False, **options: object) -> _Stream:
        if not output:
            raise OSError("there is no microphone")
        return _Stream()

    def get_format_from_width(self, width: int) -> int:
        return {2: paInt16}[width]

    def terminate(self) -> None:
        pass
