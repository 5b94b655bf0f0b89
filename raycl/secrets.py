"""Keeps secrets out of output, files, process lists and the metadata of jobs."""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

MASK = "***"
"""The text that is printed in place of a secret."""
WORDS = "RAYCL_COMMAND_WORDS"
"""Environment variable that holds the true command line, where the visible one is masked."""
PACKAGE, FILE = "raycl_secrets", "variables.json"
"""Folder (a Python module) that brings variables to a job, and the file inside it."""
SHORT = 4
"""Shorter passwords are not looked for outside of URIs: they would be found everywhere."""

_SCHEME = "([A-Za-z][A-Za-z0-9+.-]*)://"
_URI = re.compile(_SCHEME + r"([^\s'\"<>]+)")
_WHOLE_URI = re.compile(_SCHEME + r"(\S+)")
_ALONE = re.compile(r"(?:[\w.-]+=)*" + _WHOLE_URI.pattern)
_OPTION = re.compile(r"([?&;](?:amp;)?([^=&;?\s]+)=)([^&;]+)")
_ASSIGNED = re.compile(r"(?i)\b((?:ssl)?passw(?:or)?d|pwd)=(?!\*\*\*)[^\s&;'\"]+")
_OPTION_NAME = re.compile(
    r"(?i)^(?!viewStateShareKey$)"  # the name of a saved view, in MLflow's addresses
    r"(sig|.*(pass|pwd|secret|token|key|credential|signature|odbc_connect))"
)
_FILE_OPTION = re.compile("(?i)ssl_?key|.*(file|path)")
"""Options that say where a file is; others that look like paths may be secrets."""
_ODBC_PASSWORD = re.compile(r"(?i)(^|;)\s*(pwd|password)\s*=")
_PLAIN_ODBC_PASSWORD = re.compile(r"(?i)(pwd|password)=[^\s'\"<>{]*")
ENDS = re.compile(r"['\"<>\s]")
"""Characters at which a URI in running text ends, so that what is behind them is not hidden."""
CODES = "' as %27, \" as %22, < as %3C, > as %3E, a space as %20"
"""How a URI says these characters."""
_VARIABLE = re.compile(r"PASS|PWD|SECRET|TOKEN|KEY|CREDENTIAL|SAS|CONNECTION_STRING|^FSSPEC_")
_remembered: set[str] = set()


def masked(text: str) -> str:
    """The text with ``***`` for the passwords in its URIs and the secret options of their queries.

    In running text a quote ends a URI; in a text that is a URI, or ``NAME=URI``, it is part of it.
    White space ends it in both, see ``cut_off``.

    >>> masked("no answer from http://ada:word@host:5000/x?token=1")
    'no answer from http://ada:***@host:5000/x?token=***'
    """
    uri = _WHOLE_URI if _ALONE.fullmatch(text.strip()) else _URI
    text = uri.sub(lambda found: f"{found[1]}://{_without_user(found[1], found[2])}", text)
    return _ASSIGNED.sub(rf"\1={MASK}", text)


def redact(text: str) -> str:
    """The text as it may be printed: without passwords, tokens and keys.

    Hidden is what ``masked`` hides, what ``remember`` was told of, and the values of this process's
    variables that hold secrets.
    """
    text = masked(text)
    held = (v for k, v in os.environ.items() if _VARIABLE.search(k) and _worth_hiding(v))
    for value in sorted({*_remembered, *held}, key=len, reverse=True):
        if value in text:
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", MASK, text)
    return text


def _without_user(scheme: str, rest: str) -> str:
    """The part of a URI after ``://``, without password and secret options."""
    end = user_end(rest)
    shown = rest if end < 0 else rest[end:]
    shown = _OPTION.sub(lambda o: o[1] + MASK if _OPTION_NAME.match(o[2]) else o[0], shown)
    if end < 0:
        return shown
    user, _, password = rest[:end].partition(":")
    if password:
        return f"{user}:{MASK}{shown}"
    # a name alone, which a web server takes for a token, and a database for a user
    return f"{MASK}{shown}" if scheme.lower() in ("http", "https") else rest[:end] + shown


def user_end(rest: str) -> int:
    """Index of the ``@`` that ends user and password in the part after ``://``; -1: none.

    It is the last one, for people write passwords with ``@``, ``/``, ``?`` and ``#`` as they are.
    """
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        return re.split("[?#]", rest, maxsplit=1)[0].rfind("@")
    port = authority.partition(":")[2]
    return rest.rfind("@") if port and not port.isdigit() and authority[0] != "[" else -1


def _worth_hiding(value: str) -> bool:
    """Whether a variable's value can be a secret: not short, and not where a file is."""
    return len(value) >= 2 * SHORT and not value.startswith(("/", "~", "."))


def _secret_options(rest: str) -> list[re.Match[str]]:
    """The secret options in the part of a URI after ``://``: name and value are groups 2 and 3.

    An option that says where a file is, such as that of a key, is masked but no secret.
    """
    found = (o for o in _OPTION.finditer(rest) if _OPTION_NAME.match(o[2]))
    return [option for option in found if not _FILE_OPTION.fullmatch(option[2])]


def cut_off(uri: str) -> str:
    """Why ``masked`` would not hide all secrets of a URI in running text; empty: it does.

    The driver's name in an ODBC string may have spaces: the password behind it is hidden.
    """
    rest = uri.partition("://")[2]
    end = ENDS.search(rest)
    if end is None or uri.lstrip().startswith("sqlite"):
        return ""
    if end.start() < user_end(rest):
        return "the password has a character that ends a URI"
    for option in _secret_options(rest):
        name, value = option[2], option[3]
        if value == MASK:  # hidden already
            continue
        if _is_odd_odbc(option) if name.lower() == "odbc_connect" else ENDS.search(value):
            return f"the option {name} has a character that ends a URI"
        if option.start() > end.start() and not _ASSIGNED.match(option[0][1:]):
            return f"the option {name} is behind a character that ends a URI"
    return ""


def _is_odd_odbc(option: re.Match[str]) -> bool:
    """Whether an ODBC string with spaces or quotes has a password that is not hidden in it."""
    from urllib.parse import unquote_plus

    text = option.string[option.start(3) :].split("&")[0]
    secret = (part for part in text.split(";") if _ODBC_PASSWORD.search(unquote_plus(part)))
    return bool(ENDS.search(text)) and not all(map(_PLAIN_ODBC_PASSWORD.fullmatch, secret))


def remember(uri: str) -> None:
    """Hide the password and the secret options of a URI from now on, also where they stand alone.

    Errors of network and database libraries repeat parts of a URI.
    """
    from urllib.parse import unquote

    rest = uri.partition("://")[2]
    values = {option[3] for option in _secret_options(rest)}
    if (end := user_end(rest)) > 0:
        password = rest[:end].partition(":")[2]
        values |= {password, *re.split("[/?#@]", password)}
    parts = values | set(map(unquote, values))
    _remembered.update(part for part in parts if len(part) >= SHORT)


def concealed(value: Any) -> Any:
    """A tree of plain values in which every text is ``masked``."""
    if isinstance(value, dict):
        return {key: concealed(child) for key, child in value.items()}
    if isinstance(value, list):
        return [concealed(child) for child in value]
    return masked(value) if isinstance(value, str) else value


def is_secret(name: str, value: str) -> bool:
    """Whether a variable holds a secret: its name says so, or there is one in its value."""
    plain = re.sub(r"\s", "-", value.strip())  # a space ends a URI in text
    return name == WORDS or bool(_VARIABLE.search(name)) or masked(plain) != plain


def split(variables: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split variables into those that everybody may see and those that hold secrets."""
    hidden = {name: value for name, value in variables.items() if is_secret(name, value)}
    return {k: v for k, v in variables.items() if k not in hidden}, hidden


# ---------------------------------------------------------------------- output


class _Redacted:
    """A text stream on which no secret is written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text without its secrets."""
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write lines without their secrets."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_output() -> None:
    """Redact everything that this process prints, also warnings and tracebacks of libraries."""
    sys.stdout, sys.stderr = _Redacted(sys.stdout), _Redacted(sys.stderr)


# ---------------------------------------------------------------------- command line


def leave_the_command_line() -> None:
    """Take secrets out of this process's command line, which everybody on the machine can read.

    Ray writes the driver's command line into its metadata. The process replaces itself by one whose
    command line is masked and which finds its words in a variable.
    """
    given = sys.argv[1:]
    if words := os.environ.pop(WORDS, None):
        sys.argv[1:] = json.loads(words)
    elif given and sys.orig_argv[-len(given) :] == given and list(map(masked, given)) != given:
        os.environ[WORDS] = json.dumps(given)
        command = [*sys.orig_argv[: -len(given)], *map(masked, given)]
        os.execv(sys.executable, command)


# ---------------------------------------------------------------------- jobs


def pack(variables: Mapping[str, str], into: Path) -> Path:
    """Write a folder that brings variables to a job as a Python module, read by ``unpack``.

    Ray shows a job's variables to everybody who sees its dashboard, but not what is in its files;
    it unpacks them on the nodes with the mode they have here, 0600.
    """
    folder = into / PACKAGE
    folder.mkdir(mode=0o700)
    text = json.dumps({"job": secrets.token_hex(8), "variables": dict(variables)})  # a job's own
    with os.fdopen(os.open(folder / FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
        f.write(text)
    return folder


def unpack() -> None:
    """Set the variables that came to this job with ``pack``."""
    for place in sys.path:
        file = Path(place) / PACKAGE / FILE
        if file.is_file():
            adopt(json.loads(file.read_text())["variables"])


def adopt(variables: Mapping[str, str]) -> None:
    """Set variables in this process, also for fsspec, which reads its own when it is imported."""
    os.environ.update(variables)
    if "fsspec" in sys.modules:
        from fsspec.config import conf, set_conf_env

        set_conf_env(conf)
