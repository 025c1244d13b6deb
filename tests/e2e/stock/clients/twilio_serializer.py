"""Pipecat's TwilioFrameSerializer as the judge of our Twilio frames: it speaks as a caller, and reads what the server says.

The rest of Twilio is played here: ``start``, ``mark`` when audio was played, ``stop``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

from loguru import logger
from pipecat.frames.frames import InputAudioRawFrame, InterruptionFrame, OutputAudioRawFrame
from pipecat.serializers.twilio import TwilioFrameSerializer
from scenarios import FULL_URL, RATE_HZ, URL, Facts, play, speech
from websockets.asyncio.client import connect

logger.remove()
SID = "MZ00000000000000000000000000000001"
FRAME_MS = 20


class Call:
    def __init__(self, socket, serializer: TwilioFrameSerializer) -> None:
        self.socket, self.serializer = socket, serializer
        self.order: list[str] = []
        self.pcm = b""
        self.marks: list[str] = []
        self.replied = False
        self.plays = True  # marks are returned as if their audio had been played at once

    async def start(self) -> None:
        await self.socket.send(json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}))
        about = {
            "streamSid": SID,
            "accountSid": "AC1",
            "callSid": "CA1",
            "tracks": ["inbound"],
            "customParameters": {"language": "en-us"},
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        }
        await self.socket.send(
            json.dumps({"event": "start", "sequenceNumber": "1", "streamSid": SID, "start": about})
        )

    async def say(self) -> None:
        pcm = speech()
        size = RATE_HZ * FRAME_MS // 1000 * 2
        for at in range(0, len(pcm), size):
            frame = OutputAudioRawFrame(audio=pcm[at : at + size], sample_rate=RATE_HZ, num_channels=1)
            message = await self.serializer.serialize(frame)
            if message:
                await self.socket.send(message)
            await asyncio.sleep(FRAME_MS / 2000)

    async def read(self) -> str:
        """One message; its event."""
        text = await self.socket.recv()
        message = json.loads(text)
        event = message["event"]
        assert message["streamSid"] == SID
        if not self.order or self.order[-1] != event:
            self.order.append(event)
        if event == "media":
            frame = await self.serializer.deserialize(text)
            if isinstance(frame, InputAudioRawFrame):  # its resampler keeps the first few samples back
                self.pcm += frame.audio
        elif event == "mark":
            self.marks.append(message["mark"]["name"])
            self.replied = self.replied or not message["mark"]["name"].startswith("0.")
            if self.plays:
                await self.socket.send(
                    json.dumps({"event": "mark", "streamSid": SID, "mark": message["mark"]})
                )
        elif event == "clear":
            assert message == json.loads(await self.serializer.serialize(InterruptionFrame()))
        else:
            raise AssertionError(f"Twilio knows no {event}")
        return event

    async def until(self, event: str) -> None:
        while await self.read() != event:
            pass

    async def reply(self, quiet_s: float = 1.0) -> None:
        """Until a reply was heard, after what is said of being busy, and nothing more came for ``quiet_s``."""
        while not self.replied:
            await self.read()
        with contextlib.suppress(TimeoutError):
            while True:
                await asyncio.wait_for(self.read(), quiet_s)

    def facts(self) -> dict[str, object]:
        samples = memoryview(self.pcm).cast("h")
        return {
            "audio_ms": len(samples) * 1000 / RATE_HZ,
            "loudness": (sum(one * one for one in samples) / max(len(samples), 1)) ** 0.5,
            "events": self.order,
            "marks": len(self.marks),
        }


@contextlib.asynccontextmanager
async def call(url: str = URL):
    params = TwilioFrameSerializer.InputParams(sample_rate=RATE_HZ, auto_hang_up=False)
    serializer = TwilioFrameSerializer(SID, params=params)
    await serializer.setup(None)
    async with connect(url.replace("http", "ws", 1) + "/v1/twilio") as socket:
        line = Call(socket, serializer)
        await line.start()
        yield line


async def voice() -> Facts:
    async with call() as line:
        await line.say()
        await line.reply()
        return line.facts()


async def barge_in() -> Facts:
    async with call() as line:
        line.plays = False  # a caller hears the reply while this goes on
        await line.say()
        while not line.replied:
            await line.read()
        speaking = asyncio.create_task(line.say())
        await line.until("clear")
        before = len(line.pcm)
        line.plays, line.replied = True, False
        await speaking
        await line.reply()
        return {"interrupted": True, "before_ms": before / 48, **line.facts()}


async def busy() -> Facts:
    began = time.monotonic()
    async with call(FULL_URL) as line:
        with contextlib.suppress(Exception):
            while True:
                await line.read()
        told = {"error": f"closed {line.socket.close_code}", "code": line.socket.close_code}
        return {**told, **line.facts(), "seconds": time.monotonic() - began}


async def error() -> Facts:
    """Twilio ends a stream for any message that it does not know, so a mistake is answered by going on."""
    async with call() as line:
        await line.socket.send("{")
        await line.socket.send(json.dumps({"event": "media", "streamSid": SID, "media": {"payload": "?"}}))
        await line.say()
        await line.reply()
        return line.facts()


if __name__ == "__main__":
    play(voice, barge_in, error, busy)
