"""Talk to a voiceserver from the command line: ``voiceserver talk FILE…``, ``--say TEXT`` or ``--mic``.

Exit codes: 0 everything was answered; 1 something was not; 2 a bad file or bad usage; 3 refused, for want of a place (the
retry time is printed) or of the right key; 4 the connection was lost or never came about.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from voiceserver.events.events import ReplyAudio, ServerEvent
from voiceserver_clients.command import complain
from voiceserver_clients.connecting import (
    BadAddress,
    ConnectFailed,
    ConnectionLost,
    Reconnect,
    Refused,
    check_address,
)
from voiceserver_clients.conversation import Conversation, OnEvent, TurnReport
from voiceserver_clients.made_speech import NoSpeech, make_speech
from voiceserver_clients.recording import BadRecording, Recording, read_recording, write_wav
from voiceserver_clients.timeline import Timeline, latency_table, make_console, speech_seconds
from voiceserver_clients.voice import VoiceClient

DEFAULT_URL = "ws://127.0.0.1:8765/v1/stream"
REFUSALS = (401, 403)  # beside those that name a time to try again
EXIT_UNANSWERED, EXIT_USAGE, EXIT_REFUSED, EXIT_LOST = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said. rate_hz is the rate on the wire; files are resampled to it."""

    url: str
    rate_hz: int
    out: Path | None
    is_json: bool
    is_realtime: bool
    reconnects: bool
    key: str = field(default="", repr=False)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


def talk(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Recordings to speak, one turn after the other.")
    ] = None,
    url: Annotated[str, typer.Option(help="Where the server listens.")] = DEFAULT_URL,
    out: Annotated[Path | None, typer.Option(help="Write the reply's speech here, as WAV.")] = None,
    rate: Annotated[
        int, typer.Option(help="Sampling rate on the wire, in Hz.", min=8_000, max=48_000)
    ] = 16_000,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object per event instead of the timeline.")
    ] = False,
    realtime: Annotated[
        bool,
        typer.Option("--realtime/--fast", help="As a microphone would, or as fast as the server allows."),
    ] = True,
    say: Annotated[
        list[str] | None,
        typer.Option(help="Words to speak with the espeak voice, after the files; may be given again."),
    ] = None,
    mic: Annotated[bool, typer.Option("--mic", help="Speak yourself; the reply is played.")] = False,
    reconnect: Annotated[bool, typer.Option(help="Pick a lost connection up again.")] = True,
    key: Annotated[
        str, typer.Option(envvar="VOICESERVER_KEY", help="The API key, where the server wants one.")
    ] = "",
) -> None:
    """Hold a spoken conversation with a voiceserver and show it as it happens."""
    options = Options(url, rate, out, json, realtime, reconnect, key)
    if bool(files or say) == mic:
        both = "give recordings to speak, --say and words, or --mic to speak yourself"
        _fail(f"{both}, not both" if mic else both, EXIT_USAGE)
    try:
        check_address(url)
    except BadAddress as error:
        _fail(str(error), EXIT_USAGE)
    if out is not None and (out.is_dir() or not os.access(out.parent, os.W_OK)):
        _fail(f"{out}: the reply cannot be written there", EXIT_USAGE)
    try:
        recordings = [read_recording(path, rate) for path in files or []]
        recordings += [make_speech(text, rate) for text in say or []]
    except (BadRecording, NoSpeech) as error:
        _fail(str(error), EXIT_USAGE)
    for recording in recordings:
        if recording.warning:
            complain(recording.warning)
    raise typer.Exit(run(recordings, options, uses_microphone=mic))


def run(recordings: list[Recording], options: Options, *, uses_microphone: bool = False) -> int:
    """Exit code of the conversation."""
    try:
        if uses_microphone:
            from voiceserver_clients.microphone import MicrophoneMissing, converse_live

            try:
                show = Timeline(make_console()).show_event
                asyncio.run(converse_live(options.url, options.rate_hz, show, _tell_lost, options.headers))
            except MicrophoneMissing as error:
                return complain(str(error), EXIT_USAGE)
            return 0
        return asyncio.run(_converse(recordings, options))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Refused as refusal:
        return complain(str(refusal), EXIT_REFUSED)
    except ConnectFailed as error:
        return complain(str(error), EXIT_REFUSED if error.status in REFUSALS else EXIT_LOST)
    except ConnectionLost as error:
        return complain(str(error), EXIT_LOST)


def _tell_lost(lost_ms: float) -> None:
    complain(f"{lost_ms:,.0f} ms of what you said were lost: for too long the server took no audio")


async def _converse(recordings: list[Recording], options: Options) -> int:
    console = make_console()
    timeline = Timeline(console)
    on_event: OnEvent = _print_json if options.is_json else timeline.show_event
    on_speak = None if options.is_json else timeline.show_recording
    policy = Reconnect() if options.reconnects else None
    async with VoiceClient.connect(
        options.url, rate_hz=options.rate_hz, reconnect=policy, headers=options.headers
    ) as client:
        conversation = Conversation(client, on_event, is_realtime=options.is_realtime, on_speak=on_speak)
        try:
            reports = await conversation.hold(recordings)
        finally:
            _write_reply(conversation, options.out)
    if not options.is_json:
        _print_summary(console, conversation, reports, options.out)
    if client.lost_ms:
        complain(
            f"{client.lost_ms / 1000:.1f} s of speech went with a session that could not be picked up again",
            EXIT_UNANSWERED,
        )
    return 0 if conversation.state.is_answered and not client.lost_ms else EXIT_UNANSWERED


def _write_reply(conversation: Conversation, out: Path | None) -> None:
    state = conversation.state
    if out is not None and state.reply_audio:
        write_wav(out, bytes(state.reply_audio), state.output_rate_hz)


def _print_summary(
    console: Console, conversation: Conversation, reports: list[TurnReport], out: Path | None
) -> None:
    console.print()
    console.print(latency_table(reports))
    if not reports:
        console.print("The server heard no speech.")
    if out is not None and conversation.state.reply_audio:
        length_s = speech_seconds(conversation.state.reply_audio, conversation.state.output_rate_hz)
        console.print(f"Reply written to {out} ({length_s:.1f} s)")


# ``t_ms`` is when this client heard it, since the conversation began; an event's own ``at_ms`` is on the clock of its audio.
def _print_json(at_ms: float, event: ServerEvent) -> None:
    if isinstance(event, ReplyAudio):
        body: dict[str, object] = {"type": "reply.audio", "turn": event.turn, "bytes": len(event.pcm)}
    else:
        body = msgspec.to_builtins(event)
    print(msgspec.json.encode({"t_ms": round(at_ms, 3), **body}).decode(), flush=True)


def _fail(message: str, code: int) -> None:
    raise typer.Exit(complain(message, code))


def main() -> None:
    typer.run(talk)


if __name__ == "__main__":
    main()
