"""A node as a service of the operating system: systemd's units, launchd's file, and what a node tells systemd."""
