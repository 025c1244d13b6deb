"""PyAudio on a machine without a sound card: whisper-live's client imports it, and it needs PortAudio to be built."""

from __future__ import annotations

paInt16 = 8


class PyAudio:
    def open(self, **options: object) -> None:
        raise OSError("there is no sound card")

    def get_format_from_width(self, width: int) -> int:
        return {2: paInt16}[width]

    def terminate(self) -> None:
        pass
