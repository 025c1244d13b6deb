"""``python -m voiceserver``."""

from voiceserver.cli import main

main()
