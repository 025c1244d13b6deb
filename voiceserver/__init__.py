"""voiceserver: a realtime voice-agent server that is never silent. Importing it loads neither torch nor numpy (R2)."""

__version__ = "0.1.0"
