"""``mycelia bench attacks``: what strangers with a few keys and one address can do to real nodes on this machine.

``strangers`` are the attackers, in a process of their own and always on 127.0.0.2; ``honest`` is who comes from
127.0.0.1 and wants something; ``command`` runs the one beside the other and tells the ratio to idle.

The attackers are bounded in number and in what they send, and only connect to the addresses of nodes that the benchmark
has started itself.
"""
