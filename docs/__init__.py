"""The documentation: pages written by hand, and those that ``docs.generate`` writes from the code."""
