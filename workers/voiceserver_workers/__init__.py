"""Worker processes: they batch across sessions. Imports nothing of ``voiceserver`` or ``voiceserver_clients`` (R1)."""

if __name__ != "voiceserver_workers":
    # From a checkout, the folder above is importable too. A module under two names would exist twice.
    raise ImportError(f"import voiceserver_workers, not {__name__}")
