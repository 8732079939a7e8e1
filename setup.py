"""The one thing that setup.cfg cannot say: the folders at the top are packages of ``mycelia``, with all their
subfolders. (Other distributions install packages called ``proto`` and ``node``.)"""

from setuptools import find_packages, setup

ROOMS = ("bench", "node", "proto", "sim")

setup(packages=[f"mycelia.{name}" for room in ROOMS for name in find_packages(include=[room, f"{room}.*"])])
