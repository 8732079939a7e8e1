"""``mycelia bench attacks``: what strangers with a few keys and one address can do to real nodes on this machine.

``strangers`` are the attackers, in a process of their own and always on 127.0.0.2. ``honest`` are the attacked nodes
and the peers and clients that use them, on 127.0.0.1. ``command`` runs both and reports the ratio to idle.

The attackers are bounded in number and in what they send. They connect only to nodes that the benchmark itself started.
"""
