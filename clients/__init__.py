"""The other end of the wire: an async client, a talking client, a demo and a load generator.

Imports nothing of the server except its vocabulary: ``voiceserver.events``, ``voiceserver.errors``, ``voiceserver.wire``.
"""
