"""The chefs: worker processes that batch across sessions. Imports nothing of voiceserver or clients (R1)."""
