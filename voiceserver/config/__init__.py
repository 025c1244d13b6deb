"""The configuration: its settings, how they are loaded, which values are allowed, and how many cores there are."""
