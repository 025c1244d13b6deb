"""One module per question: ``python -m benchmarks.NAME`` prints ours beside the peers and stores the figures."""
