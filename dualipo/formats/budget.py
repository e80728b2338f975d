"""How much of a source may be broken."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dualipo.errors import UserError


@dataclass(frozen=True)
class Budget:
    """A number of items, or a share of all items."""

    count: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """`5` is a number; `0.02` and `2%` are shares. Raises UserError on anything else."""
        try:
            if text.isdecimal():
                return cls(count=int(text))
            share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            share = math.nan
        if not 0 <= share <= 1:
            raise UserError(f"--max-broken {text}: write a number of items (5) or a share of them (0.02 or 2%)")
        return cls(share=share)

    def of(self, total: int) -> int:
        """Broken items allowed among `total`."""
        if self.count is not None:
            return self.count
        # 0.07 x 100 is 7.000000000000001, 0.29 x 100 is 28.999999999999996.
        return math.floor((self.share or 0) * total + 1e-9)
