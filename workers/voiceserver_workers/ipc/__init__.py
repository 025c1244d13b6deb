"""Shared-memory rings between the server's event loop and a worker process. Standard library only."""
