"""What SIGHUP does: read keys, certificate and configuration again, take up what can be, and say what needs a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from voiceserver.config.loader import Loaded
from voiceserver.config.schema import Config
from voiceserver.errors import ConfigError
from voiceserver.observability.logs import configure, get_logger
from voiceserver.server.server import Server

# Settings that are taken up while the server runs. The files that settings name (keys, certificate) are read again as well.
LIVE: Final = frozenset({"server.log_level", "server.log_format"})


class Reloader:
    """``config``: as it was read. ``read_again`` None: there is only what the files hold."""

    def __init__(self, config: Config, read_again: Callable[[], Loaded] | None) -> None:
        self._config = config
        self._read_again = read_again

    def reload(self, server: Server) -> None:
        """A configuration that is wrong is logged, and the old one stays in use."""
        server.reload_files()
        if self._read_again is None:
            return
        log = get_logger()
        try:
            fresh = self._read_again().config
        except ConfigError as error:
            log.error("reload failed", reason=str(error))
            return
        changed = differences(self._config, fresh)
        taken_up = [name for name in changed if name in LIVE]
        if taken_up:
            configure(fresh.server.log_level, fresh.server.log_format)
            live = {
                name.partition(".")[2]: getattr(fresh.server, name.partition(".")[2]) for name in taken_up
            }
            self._config = msgspec.structs.replace(
                self._config, server=msgspec.structs.replace(self._config.server, **live)
            )
        log.info(
            "configuration reloaded",
            changed=taken_up,
            needs_restart=[name for name in changed if name not in LIVE],
        )


def differences(before: Config, after: Config) -> list[str]:
    """The dotted names of settings whose value is another."""
    old, new = dict(_leaves(msgspec.to_builtins(before))), dict(_leaves(msgspec.to_builtins(after)))
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
