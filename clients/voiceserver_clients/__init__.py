"""The other end of the wire: an async client, a talking client, a demo and a load generator.

Imports nothing of the server except its vocabulary: ``voiceserver.events``, ``voiceserver.errors``, ``voiceserver.wire``; and
``voiceserver.installation``, which says what is missing.
"""

if __name__ != "voiceserver_clients":
    # From a checkout, the folder above is importable too. A module under two names would exist twice.
    raise ImportError(f"import voiceserver_clients, not {__name__}")
