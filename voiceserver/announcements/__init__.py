"""Sound that is not a reply: prerendered lines and tones for callers who cannot read events."""
