"""One conversation as a pure state machine: time and bytes are arguments, decisions are returned."""
