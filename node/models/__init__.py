"""Model files by name: what a name means, fetching, and what lies on this machine."""
