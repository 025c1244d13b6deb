"""The servers that benchmarks compare, each in a process of its own, and how such a process is watched from outside."""
