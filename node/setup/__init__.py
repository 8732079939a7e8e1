"""The choices of ``mycelia setup``: which models this machine can serve, and what it gives to others."""
