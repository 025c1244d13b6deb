"""The environment of the process, read here and nowhere else (R5): settings, and the check that none is misspelt.

A setting's variable is its dotted name in capitals, with two underscores for each dot: ``VOICESERVER_STAGES__STT__WORKERS``.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from voiceserver.errors import ConfigError

PREFIX: Final = "VOICESERVER_"
# Names the file, as --config does.
FILE_VARIABLE: Final = "VOICESERVER_CONFIG"
CHAT_API_KEY: Final = "VOICESERVER_CHAT_API_KEY"
# What else begins like a setting's variable: for the chat engine, for our client, for the tests in a browser.
OTHER_VARIABLES: Final = (FILE_VARIABLE, CHAT_API_KEY, "VOICESERVER_KEY", "VOICESERVER_CHROMIUM")
_SERVICE_VARIABLE: Final = re.compile(
    r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PORT|PROTO|ADDR))?$"
)
_SERVICE_VALUE: Final = re.compile(r"(tcp|udp|sctp)://")


def environment() -> Mapping[str, str]:
    """The variables of this process."""
    return os.environ


def settings_in(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """``(key, text, variable)`` of each setting, by the variable's name."""
    for name, text in sorted(environ.items()):
        if name.startswith(PREFIX) and "__" in name:
            yield name.removeprefix(PREFIX).lower().replace("__", "."), text, name


def check_names(environ: Mapping[str, str], keys: Collection[str], named: Collection[object]) -> None:
    """Refuse a variable that looks like one of ours and has no effect: it may be a misspelt setting.

    keys: all settings. named: variables that a setting names, as ``api_key_env`` does. Raises ConfigError."""
    known = [PREFIX + key.upper().replace(".", "__") for key in keys]
    for name, text in sorted(environ.items()):
        is_ours = name.startswith(PREFIX) and "__" not in name and name not in OTHER_VARIABLES
        if not is_ours or name in named or _is_of_orchestrator(name, text):
            continue
        close = difflib.get_close_matches(name, [*known, *OTHER_VARIABLES], n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        problem = f"there is no such variable{hint} (a setting's name has two underscores for each dot)"
        raise ConfigError(name, problem, "the environment")


def _is_of_orchestrator(name: str, text: str) -> bool:
    """Kubernetes describes each service to every container; a service called voiceserver gets these names."""
    return bool(_SERVICE_VARIABLE.search(name) or _SERVICE_VALUE.match(text))
