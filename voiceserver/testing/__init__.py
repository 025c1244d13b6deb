"""The testing kit: what authors of engines, wires, pools and clients need to test their own code.

================================ ==================================================================================
``EngineSuite, EngineCase``      what every engine promises, as tests (needs numpy)
``CodecSuite, CodecCase``        what every codec promises
``StreamSuite, PoolSuite``       what every pool promises
``running_server``               a server in this process, on a real socket
``server_in_thread``             the same for code without an event loop
``ChatEndpoint, Answer, ...``    a chat-completions endpoint that answers by script
``SpeechEndpoint, Spoken, ...``  an endpoint that speaks and transcribes by script
``ManualClock``                  a clock and loop that only the test moves
================================ ==================================================================================

``voiceserver.testing.plugin`` is a plug-in of pytest with fixtures of these; pytest finds it by itself.
``pip install 'voiceserver[testing]'`` brings what the suites need. Names are loaded when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from voiceserver.testing.chat_endpoint import Answer, Broken, ChatEndpoint, Raw, Silent, Status, Tool
    from voiceserver.testing.clock import ManualClock
    from voiceserver.testing.codec_suite import CodecCase, CodecSuite
    from voiceserver.testing.engine_suite import (
        EngineCase,
        EngineSuite,
        Input,
        audio_script,
        reply_script,
        text_script,
    )
    from voiceserver.testing.pool_suite import Bench, MakeBench, Owner, PoolSuite, StreamSuite
    from voiceserver.testing.server import RunningServer, inline_pool, running_server, server_in_thread
    from voiceserver.testing.speech_endpoint import Heard, SpeechEndpoint, Spoken

__all__ = [
    "Answer",
    "Bench",
    "Broken",
    "ChatEndpoint",
    "CodecCase",
    "CodecSuite",
    "EngineCase",
    "EngineSuite",
    "Heard",
    "Input",
    "MakeBench",
    "ManualClock",
    "Owner",
    "PoolSuite",
    "Raw",
    "RunningServer",
    "Silent",
    "SpeechEndpoint",
    "Spoken",
    "Status",
    "StreamSuite",
    "Tool",
    "audio_script",
    "inline_pool",
    "reply_script",
    "running_server",
    "server_in_thread",
    "text_script",
]

_MODULES = {
    "chat_endpoint": {"Answer", "Broken", "ChatEndpoint", "Raw", "Silent", "Status", "Tool"},
    "clock": {"ManualClock"},
    "codec_suite": {"CodecCase", "CodecSuite"},
    "engine_suite": {"EngineCase", "EngineSuite", "Input", "audio_script", "reply_script", "text_script"},
    "pool_suite": {"Bench", "MakeBench", "Owner", "PoolSuite", "StreamSuite"},
    "server": {"RunningServer", "inline_pool", "running_server", "server_in_thread"},
    "speech_endpoint": {"Heard", "SpeechEndpoint", "Spoken"},
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return vars(importlib.import_module(f"{__name__}.{module}"))[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
