"""YAML by the rules of version 1.2's core schema: what sweep files are read and written by.

``1e-3`` is a number, ``no`` is text, ``010`` is ten, ``0o10`` is eight. PyYAML alone has the rules
of version 1.1.
"""

from __future__ import annotations

import re
from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of the core schema."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes every text which version 1.1 or 1.2 would take for something else."""


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", [*"-+."]),
    ("merge", r"<<", ["<"]),
):
    for _class in (Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
        )
Loader.add_constructor(
    "tag:yaml.org,2002:int",
    lambda _, node: int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10),
)


def dump(value: Any, **options: Any) -> str:
    """Plain data as YAML, in the order of the keys, that ``Loader`` reads as the same again.

    Args:
        value: Plain data.
        options: See ``yaml.dump``.
    """
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, **options)
    return text
