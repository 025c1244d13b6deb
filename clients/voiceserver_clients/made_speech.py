"""Speech for a machine without recordings, and for words that were typed: made by the server's own default voice, in a process
of its own.

The engine lives in the ``workers`` package, which clients do not import; a child process does.
"""

from __future__ import annotations

import subprocess
import sys

from voiceserver.installation import missing, missing_message
from voiceserver_clients.recording import Recording

# Lines, voice and speed that the default recogniser, which was trained on people, understands.
LINES = ("good morning", "what time is it", "how busy are you")
SILENCE_MS = 400  # before and after, as in a recording of somebody
TIMEOUT_S = 60

_SPEAK = """
import sys
import numpy as np
from voiceserver_workers.engine import Item
from voiceserver_workers.engines.espeak import Espeak
from voiceserver_workers.ipc.messages import ResultKind, StreamParams

text = sys.argv[1]
engine = Espeak({"voice": "en-us+f5", "rate": 165})
engine.open(1, StreamParams(rate_hz=engine.info.rate_hz))
item = Item(1, 1, np.empty(0, np.float32), text=text)
audio, is_more = [], True
while is_more:
    (output,) = engine.step([item])
    audio += [piece.payload for piece in output.pieces if piece.kind == ResultKind.AUDIO]
    item, is_more = item._replace(text=None, is_continued=True), output.more
import soxr
samples = soxr.resample(np.concatenate(audio), engine.info.rate_hz, int(sys.argv[2]))
sys.stdout.buffer.write((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
"""


class NoSpeech(Exception):
    """The voice could not be had. The message says why."""


def make_speech(text: str, rate_hz: int) -> Recording:
    """Say ``text``. Raises NoSpeech."""
    lacking = missing(("numpy", "soxr", "espeakng_loader"))
    if lacking:
        raise NoSpeech(missing_message("making speech needs", lacking, ("espeak",)))
    command = [sys.executable, "-c", _SPEAK, text, str(rate_hz)]
    try:
        made = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise NoSpeech(f"the espeak voice took longer than {TIMEOUT_S} s") from None
    if made.returncode or not made.stdout:
        reason = made.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it made no sound"]
        raise NoSpeech(f"the espeak voice does not work here: {reason[0]}")
    silence = bytes(2 * (rate_hz * SILENCE_MS // 1000))
    return Recording(f"“{text}”", silence + made.stdout + silence, rate_hz, "made on the spot by espeak")
