"""A deterministic discrete-event simulator over ``proto``: the same objects as in a node, in virtual time."""
