"""Counts files and folders that were passed over in the search for images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from raycl.errors import printable

NAMED = 10
"""Number of names that are printed for each reason; further ones are only counted."""


@dataclass(frozen=True)
class LeftOut:
    """Files and folders that were passed over in the search for images.

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
        """Add up several counts."""
        counts: dict[str, int] = defaultdict(int)
        names: dict[str, list[str]] = defaultdict(list)
        for part in parts:
            for reason, (count, some) in part.reasons.items():
                counts[reason] += count
                names[reason] += some
        return cls({r: (counts[r], tuple(names[r][:NAMED])) for r in sorted(counts)})
