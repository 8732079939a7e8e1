"""Sizes of files and memory as people read them, and the ending of files that are not whole yet."""

INCOMPLETE = ".incomplete"
"""As in huggingface_hub's cache, so that its clean-up removes such files of ours, too."""


def size_text(num_bytes: float) -> str:
    """Such as "4.7 GB", in powers of 1,000 as shops, disks and hubs count."""
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= power:
            value = num_bytes / power
            return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"{num_bytes:.0f} bytes"
