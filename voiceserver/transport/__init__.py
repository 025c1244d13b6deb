"""Bytes between sockets and sessions: HTTP and WebSocket framing, connections, calls, resume, timers."""
