"""The targets of ``make fuzz``, one module each, found by ``tests.fuzz.run``; see ``run.Target``."""
