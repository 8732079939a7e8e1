"""``mycelia bench``: measurements on the user's own machine, compared with alternatives that people use.

A benchmark never fails for a slow result; it fails when it could not measure.
"""
