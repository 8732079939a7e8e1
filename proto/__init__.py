"""The Mycelia protocol, pure: no clock, socket, thread, environment or log.

``Overlay.handle(event, now) -> list[Effect]`` drives everything here, in the node's shell and in the simulator.
"""

WIRE_VERSION = 2
"""The version that this code speaks; with nodes of the version before or after, the older of the two."""
