"""Types of command-line options."""

import math
from typing import Any

import click


class FiniteRange(click.FloatRange):
    """A FloatRange takes NaN, and infinity where it has no end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number
