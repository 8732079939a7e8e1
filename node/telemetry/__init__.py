"""A node's reports about itself: its last requests step by step, counters, metrics, traces over several nodes."""
