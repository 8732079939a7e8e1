"""What ``make fuzz`` throws hostile inputs at: one module a target, found by ``tests.fuzz.run``; see ``run.Target``."""
