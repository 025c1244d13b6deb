"""The settings of the ``chat`` engine, from ``[stages.reply.params]`` and the environment. Keys never show in a repr."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import msgspec

from voiceserver.config.environment import CHAT_API_KEY, environment
from voiceserver.config.schema import Value
from voiceserver.errors import ConfigError
from voiceserver_workers.http.address import AddressError, address_of

HEADER_PREFIX = "header."


class ChatConfig(msgspec.Struct, frozen=True):
    """What the endpoint is and how it is asked; negative numbers leave a choice to the endpoint.

    base_url: Address of the API up to and with its version, such as http://localhost:11434/v1; empty: OPENAI_BASE_URL.
    model: Name of the model; empty where the endpoint serves only one.
    api_key: Key that is sent as Authorization: Bearer; empty: OPENAI_API_KEY, for the host of OPENAI_BASE_URL only.
    api_key_env: Environment variable that holds the key.
    system: System prompt in place of the session's instructions; empty: those.
    reprompt: Spoken when no words were recognised in the caller's turn.
    connect_timeout_ms: Time to connect.
    first_token_timeout_ms: Longest silence of the endpoint before its first word; comments and thoughts break it.
    stall_timeout_ms: Time between two words of an answer, thoughts included.
    timeout_ms: Time for the whole answer.
    retries: How often a request is tried again while nothing of its answer was received.
    max_concurrency: Requests at once.
    temperature: Sampling temperature; below 0: the endpoint's own.
    max_tokens: Most tokens of an answer; below 0: the endpoint's own.
    max_tokens_field: Name of that limit in a request; newer endpoints of OpenAI want max_completion_tokens.
    asks_usage: Ask the endpoint for the number of tokens.
    keep_warm_ms: How often an idle connection is used, so that it is open for the next request; 0: never.
    uses_proxy: Honour HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.
    max_sentence_chars: A longer sentence is cut before it is spoken.
    first_clause_chars: Least length of a first clause that is spoken before its sentence is complete.
    max_unspoken_ms: A sentence that is not complete by then is spoken up to a clause or a word, if nothing else is being spoken.
    headers: More headers of each request, from the keys "header.NAME".
    """

    base_url: str = ""
    model: str = ""
    api_key: str = ""
    api_key_env: str = CHAT_API_KEY
    system: str = ""
    reprompt: str = "Sorry, I did not catch that. Could you say it again?"
    connect_timeout_ms: float = 3_000.0
    first_token_timeout_ms: float = 8_000.0
    stall_timeout_ms: float = 5_000.0
    timeout_ms: float = 60_000.0
    retries: int = 1
    max_concurrency: int = 256
    temperature: float = -1.0
    max_tokens: int = -1
    max_tokens_field: str = "max_tokens"
    asks_usage: bool = True
    keep_warm_ms: float = 30_000.0
    uses_proxy: bool = True
    max_sentence_chars: int = 240
    first_clause_chars: int = 32
    max_unspoken_ms: float = 1_500.0
    headers: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"ChatConfig({self.base_url!r}, {self.model!r})"

    @classmethod
    def from_params(
        cls,
        params: Mapping[str, Value],
        environ: Mapping[str, str] | None = None,
        *,
        key: str = "stages.reply.params",
    ) -> ChatConfig:
        """environ: where an API key is looked up; None: the environment of this process.

        Raises ConfigError that names the parameter below ``key``."""
        kinds = {one.name: one.type.__name__ for one in msgspec.structs.fields(cls) if one.name != "headers"}
        values: dict[str, Value] = {}
        headers: dict[str, str] = {}
        for name, value in params.items():
            if name.startswith(HEADER_PREFIX) and len(name) > len(HEADER_PREFIX):
                headers[name.removeprefix(HEADER_PREFIX)] = _header(f"{key}.{name}", value)
            elif name in kinds:
                values[name] = _checked(f"{key}.{name}", value, kinds[name])
            else:
                nearest = difflib.get_close_matches(name, list(kinds), n=1)
                hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
                raise ConfigError(f"{key}.{name}", f"the chat engine has no such parameter.{hint}")
        variables = environment() if environ is None else environ
        try:
            address = address_of("chat", values, variables, own_variable=CHAT_API_KEY)
        except AddressError as error:
            raise ConfigError(f"{key}.{error.parameter}", error.problem) from None
        values["base_url"], values["api_key"] = address.base_url, address.api_key
        return cls(**values, headers=headers)  # type: ignore[arg-type]


def _checked(key: str, value: Value, kind: str) -> Value:
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value).__name__ != kind:
        raise ConfigError(
            key, f"must be {_NOUNS[kind]}, not {value!r}" if "key" not in key else "must be text"
        )
    name = key.rpartition(".")[2]
    low = _LEAST.get(name)
    if low is not None and isinstance(value, int | float) and value < low:
        raise ConfigError(key, f"must be at least {low:g}, not {value}")
    return value


_NOUNS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}
_LEAST = {
    "connect_timeout_ms": 1,
    "first_token_timeout_ms": 1,
    "stall_timeout_ms": 1,
    "timeout_ms": 1,
    "retries": 0,
    "max_concurrency": 1,
    "keep_warm_ms": 0,
    "max_unspoken_ms": 1,
    "max_sentence_chars": 40,
    "first_clause_chars": 1,
}


def _header(key: str, value: Value) -> str:
    text = str(value)
    if not text.isascii() or not text.isprintable():
        raise ConfigError(key, "a header is printable ASCII")
    return text
