"""What was passed over while images were looked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from raycl.errors import printable

NAMED = 10
"""Names that stand in a line for each reason; more are only counted."""


@dataclass(frozen=True)
class LeftOut:
    """What was passed over while images were looked for.

    Attributes:
        reasons: Each reason with the number of names and the first of them.
    """

    reasons: Mapping[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.reasons)

    def __str__(self) -> str:
        parts = []
        for reason, (count, names) in self.reasons.items():
            shown = ", ".join(f"'{printable(name)}'" for name in names)
            parts.append(f"{count:,} {reason} ({shown}{', ...' if count > len(names) else ''})")
        return "; ".join(parts)

    @classmethod
    def of(cls, found: Mapping[str, Iterable[str]]) -> LeftOut:
        """Count the names found for each reason."""
        listed = {reason: sorted(names) for reason, names in found.items()}
        return cls({r: (len(n), tuple(n[:NAMED])) for r, n in sorted(listed.items()) if n})

    @classmethod
    def merged(cls, parts: Iterable[LeftOut]) -> LeftOut:
        """What all of these count together."""
        counts: dict[str, int] = defaultdict(int)
        names: dict[str, list[str]] = defaultdict(list)
        for part in parts:
            for reason, (count, some) in part.reasons.items():
                counts[reason] += count
                names[reason] += some
        return cls({r: (counts[r], tuple(names[r][:NAMED])) for r in sorted(counts)})
