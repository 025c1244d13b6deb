"""``make demo``: a server with the default engines, a conversation with it, and then more callers than it can serve.

Everything is real: the server is its own process, the speech is recorded (or made on the spot), the engines hear and answer it.
The server is made small on purpose (two decoders, six places), so that a handful of callers is enough to see what it says when
it is full.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from voiceserver.events.events import ServerBusy, ServerEvent, SessionReady, SpeechStarted, TranscriptPartial
from voiceserver.installation import install_command
from voiceserver_clients.connecting import ConnectFailed, ConnectionLost, Refused
from voiceserver_clients.conversation import Conversation
from voiceserver_clients.local_server import LocalServer, ServerFailed
from voiceserver_clients.made_speech import LINES, NoSpeech, make_speech
from voiceserver_clients.recording import Recording, read_recording, write_wav
from voiceserver_clients.timeline import Timeline, latency_table, make_console, speech_seconds
from voiceserver_clients.voice import VoiceClient

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT.parent / "shared" / "audio"
SCRIPT = ("goforward.wav", "austen-0890.wav", "austen-0930.wav")
RATE_HZ = 16_000
REPLY_FILE = Path("reply-demo.wav")
DECODERS = 2
PLACES = 6
CALLERS = 9
ARRIVAL_S = 0.1
SMALL = {
    "stages.stt.workers": DECODERS,
    "stages.stt.streams_per_worker": 1,
    "backpressure.max_talkers": PLACES,
    "backpressure.waiting_room": 0,
}


def main() -> None:
    """Start a server, hold a conversation with it, then overload it. There is nothing to configure."""
    console = make_console()
    try:
        code = asyncio.run(demo(console))
    except KeyboardInterrupt:
        console.print("\nstopped; the server is down")
        code = 130
    except (ServerFailed, NoSpeech, ConnectFailed, ConnectionLost, Refused) as error:
        print(error, file=sys.stderr)
        code = 1
    sys.exit(code)


async def demo(console: Console) -> int:
    """Exit code: 0 when the conversation was answered to its end."""
    began_s = time.monotonic()
    console.rule("1. a server")
    async with LocalServer(SMALL) as server:
        console.print("[dim]$ voiceserver serve " + " ".join(server.command[4:]) + "[/dim]", soft_wrap=True)
        with console.status("starting") as status:
            recordings, _ = await asyncio.gather(
                asyncio.to_thread(find_speech),
                server.wait_ready(lambda missing: status.update(f"the server is {missing}")),
            )
        console.print(f"ready after {time.monotonic() - began_s:.1f} s at {server.url}")

        console.rule("2. a conversation")
        is_answered = await converse(console, server.url, recordings)

        console.rule(f"3. {CALLERS} callers at once, for {DECODERS} decoders and {PLACES} places")
        await crowd(console, server.url, recordings[0])
    console.rule("4. your turn")
    _print_how_to(console)
    console.print(f"[dim]The whole demo took {time.monotonic() - began_s:.0f} s; its server is down.[/dim]")
    return 0 if is_answered else 1


def find_speech() -> list[Recording]:
    """Recordings of people where they are, made speech elsewhere. Raises NoSpeech."""
    paths = [RECORDED / name for name in SCRIPT]
    if all(path.is_file() for path in paths):
        return [read_recording(path, RATE_HZ) for path in paths]
    try:
        return [make_speech(text, RATE_HZ) for text in LINES]
    except NoSpeech as error:
        raise NoSpeech(f"no recordings here, and {error}") from None


async def converse(console: Console, url: str, recordings: Sequence[Recording]) -> bool:
    """True when it was answered to the end."""
    timeline = Timeline(console)
    async with VoiceClient.connect(url, rate_hz=RATE_HZ) as client:
        conversation = Conversation(client, timeline.show_event, on_speak=timeline.show_recording)
        reports = await conversation.hold(recordings)
    console.print()
    console.print(latency_table(reports))
    state = conversation.state
    write_wav(REPLY_FILE, bytes(state.reply_audio), state.output_rate_hz)
    length_s = speech_seconds(state.reply_audio, state.output_rate_hz)
    console.print(f"What the server said is in {REPLY_FILE} ({length_s:.1f} s).")
    return state.is_answered


@dataclass(slots=True)
class CallerView:
    """What one caller of the crowd has heard so far."""

    state: str = "calling"
    busy_signals: int = 0
    worst_lag_ms: float = 0.0
    told: str = ""
    transcript: str = ""
    answer_ms: float | None = None
    is_refused: bool = False

    def receive_event(self, at_ms: float, event: ServerEvent) -> None:
        match event:
            case SessionReady():
                self.state = "talking"
            case SpeechStarted():
                self.state = "heard"
            case TranscriptPartial(text=text) if text:
                self.state = f"… {text}"
            case ServerBusy():
                self.busy_signals += 1
                self.worst_lag_ms = max(self.worst_lag_ms, event.lag_ms)
                self.told = f"{event.stage} {event.reason}, retry in {event.retry_after_ms / 1000:.1f} s"
                self.state = "told that it is busy"
            case _:
                pass


async def crowd(console: Console, url: str, recording: Recording) -> None:
    """More talkers than the workers can serve, and what each of them hears."""
    views = [CallerView() for _ in range(CALLERS)]
    calls = [asyncio.create_task(_call(index, view, url, recording)) for index, view in enumerate(views)]
    try:
        with Live(crowd_table(views), console=console, refresh_per_second=8) as live:
            while not all(call.done() for call in calls):
                await asyncio.wait(calls, timeout=0.1)
                live.update(crowd_table(views))
    finally:
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    if not console.is_terminal:
        console.print()  # a live table ends without a newline there
    refused = sum(view.is_refused for view in views)
    told = sum(view.busy_signals > 0 for view in views)
    served = sum(view.answer_ms is not None for view in views)
    console.print(
        f"{served} served, {told} of them told that it is busy while they waited, {refused} refused with a retry time;"
        f" {CALLERS - served - refused} left in silence."
    )


async def _call(index: int, view: CallerView, url: str, recording: Recording) -> None:
    await asyncio.sleep(index * ARRIVAL_S)
    try:
        async with VoiceClient.connect(url, rate_hz=RATE_HZ) as client:
            conversation = Conversation(client, view.receive_event, waits_for_playback=False)
            reports = await conversation.hold([recording])
    except Refused as refusal:
        view.is_refused = True
        view.state = "refused: HTTP 503"
        view.told = f"retry in {refusal.retry_after_ms / 1000:.0f} s"
        return
    except (ConnectFailed, ConnectionLost) as error:
        view.state = str(error)
        return
    answered = [report for report in reports if report.answer_ms is not None]
    view.state = "served" if answered else "no answer"
    if answered:
        view.transcript, view.answer_ms = answered[0].transcript, answered[0].answer_ms


def crowd_table(views: Sequence[CallerView]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))  # fits a terminal of 80 columns
    table.add_column("caller", justify="right", no_wrap=True)
    table.add_column("what it hears", min_width=23)
    table.add_column("busy\nsignals", justify="right", no_wrap=True)
    table.add_column("worst\nlag", justify="right", min_width=6, no_wrap=True)
    table.add_column("last told", min_width=16)
    table.add_column("first\naudio", justify="right", min_width=6, no_wrap=True)
    for index, view in enumerate(views):
        state = f"“{view.transcript}”" if view.answer_ms is not None else view.state
        table.add_row(
            str(index + 1),
            state,
            str(view.busy_signals or ""),
            f"{view.worst_lag_ms / 1000:.1f} s" if view.busy_signals else "",
            view.told,
            "" if view.answer_ms is None else f"{view.answer_ms / 1000:.1f} s",
            style="yellow" if view.is_refused else "green" if view.answer_ms is not None else "",
        )
    return table


def _print_how_to(console: Console) -> None:
    console.print("Start a server, and talk to it from a second terminal:\n")
    lines = how_to()
    width = max(len(command) for command, _ in lines)
    for command, meaning in lines:
        line = f"  [bold]{escape(command.ljust(width))}[/bold]  [dim]# {escape(meaning)}[/dim]"
        console.print(line, highlight=False, soft_wrap=True)
    console.print()


def how_to() -> list[tuple[str, str]]:
    """Command and what it does: lines of a shell, as they stand."""
    home = "" if sys.prefix == sys.base_prefix else str(Path(sys.prefix).name) + "/bin/"
    browse = "open" if sys.platform == "darwin" else "xdg-open"
    return [
        (f"{home}voiceserver serve", "the default engines on port 8765"),
        (f"{browse} http://127.0.0.1:8765/", "the page: microphone, transcript, where the time went"),
        (
            f"{home}voiceserver talk --say 'what time is it' --out reply.wav",
            "or a sound file, any rate",
        ),
        (f"{home}voiceserver talk --mic", f"your own voice ({install_command(['mic'])})"),
        ("curl http://127.0.0.1:8765/v1/capacity", "what the server carries right now"),
    ]


if __name__ == "__main__":
    typer.run(main)
