"""``mycelia bench``: measurements on the user's own machine, beside what people would use instead.

A benchmark never fails for being slow; it fails when it could not measure.
"""
