"""The Mycelia protocol, pure: no clock, socket, thread, environment or log.

Everything here is driven by ``Overlay.handle(event, now) -> list[Effect]``; the node's shell and the simulator drive
the same objects.
"""

WIRE_VERSION = 2
"""What this code speaks; and with nodes of the version before, or after, the older of the two."""
