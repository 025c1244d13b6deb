"""One module per question: ``python -m benchmarks.NAME`` prints ours beside the peers and stores the figures.

``sides`` has the servers that are compared, ``callers`` their callers, ``report`` what becomes of the figures.
"""
