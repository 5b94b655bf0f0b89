"""Errors of the user, each told in one line: where, what, and the nearest valid name."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches

from raycl.secrets import redact

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Error numbers of a disk that is full or read-only, where the program is not to blame."""
NOT_OURS = (*NO_ROOM, errno.EACCES, errno.ENAMETOOLONG)
"""Error numbers of a full disk, of a path that is closed to us, and of a name that is too long."""


class UserError(Exception):
    """Bad input; the command line prints it on one line, without secrets, and exits with code 2.

    Args:
        where: The place, e.g. ``"sweep.yaml: methods[0].lam"`` or ``"--address"``.
        what: What is wrong, as a sentence without a final full stop.
        hint: What to do about it, e.g. ``"did you mean 'lam'?"``.
    """

    def __init__(self, where: str, what: str, hint: str = "") -> None:
        self.where, self.what, self.hint = redact(where), redact(what), redact(hint)
        super().__init__(self.where, self.what, self.hint)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        text = f"{text}; {self.hint}" if self.hint else text
        return printable(" ".join(text.split()))


def printable(text: str) -> str:
    r"""The text with escapes for characters that cannot be printed, e.g. bytes of a Latin-1 name.

    >>> printable(os.fsdecode(b"caf\xe9\n"))
    'caf\\xe9\\n'
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(letter: str) -> str:
    if letter.isprintable():
        return letter
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no text, as os.fsdecode keeps it
        return f"\\x{code - 0xDC00:02x}"
    return letter.encode("unicode_escape", "surrogatepass").decode()


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint that names the closest valid name, or all of them if none is close.

    >>> nearest("fintune", ["finetune", "joint"])
    "did you mean 'finetune'?"
    """
    names = sorted(valid)
    if not names:
        return ""
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"valid: {', '.join(names)}"


KeyPath = tuple[str | int, ...]
"""Where a value stands in a sweep file, or in a block of it: keys and positions from the root."""


class Problem(ValueError):
    """What is wrong with a block.

    Attributes:
        path: Where, from the block's root.
        what: As a sentence without a full stop.
        hint: What to do about it.
    """

    def __init__(self, path: KeyPath, what: str, hint: str = "") -> None:
        self.path, self.what, self.hint = path, what, hint
        super().__init__(what)


def lacks_memory(error: Exception) -> bool:
    """Whether memory is lacking, for which no file is to blame; PyTorch says so in words."""
    lacking = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return lacking or isinstance(error, MemoryError) or "can't allocate memory" in str(error)
