"""The vocabulary: what clients and servers say to each other, whatever the wire, and the ranges of every field."""
