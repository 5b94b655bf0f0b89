"""JSON schema of sweep files, for editors. The real check is ``spec.load``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from raycl.sweep.file.model import MethodEntry, Resources, Scheduler, Sweep
from raycl.sweep.kinds import IMAGES, KINDS, Kind, registered

Schema = dict[str, Any]
SPACE: Schema = {"$ref": "#/$defs/space"}
EXTERNAL: Schema = {
    "type": "string",
    "pattern": ":",
    "description": "package.module:Class or path/to/file.py:Class",
}


def schema() -> Schema:
    """The schema: every registered name with its options, each leaf of which may be a space."""
    top = inlined(Sweep)
    everything = {name: _named_blocks(name, KINDS) for name in ("benchmark", "network")}
    top["properties"] |= {
        "benchmark": _or_list({"$ref": "#/$defs/benchmark"}),
        "methods": {"type": "array", "minItems": 1},
        "network": {"$ref": "#/$defs/network"},
        "train": {"type": "object"},
        "seeds": {"anyOf": [{"type": "integer", "minimum": 1}, top["properties"]["seeds"]]},
        "scheduler": _or_name(top["properties"]["scheduler"], inlined(Scheduler)),
    }
    for key, annotation in Sweep.model_fields.items():
        top["properties"][key].setdefault("description", annotation.description or key)
        top["properties"][key].pop("default", None)
    search = top["properties"]["search"]
    search["properties"]["benchmark"] |= {
        "anyOf": [{"$ref": "#/$defs/benchmark"}, {"type": "null"}]
    }
    search["required"] = [key for key in search.get("required", ()) if key != "mode"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **top,
        **_by_kind(),
        "title": "raycl sweep",
        "$defs": {
            "space": _space(),
            "benchmark": {"anyOf": everything["benchmark"]},
            "network": {"anyOf": [_spaced_name(block) for block in everything["network"]]},
        }
        | {f"train-{k.name}": spaced(_partial(inlined(k.train_model()))) for k in KINDS}
        | {f"method-{k.name}": {"anyOf": _methods(k)} for k in KINDS},
    }


def _by_kind() -> Schema:
    """Methods and ``train`` by the kind of the benchmark; what no other kind claims is images."""

    def words(kind: Kind) -> Schema:
        method = {"$ref": f"#/$defs/method-{kind.name}"}
        return {
            "properties": {
                "methods": {"items": method},
                "train": {"$ref": f"#/$defs/train-{kind.name}"},
            }
        }

    found = words(IMAGES)
    for kind in KINDS:
        if kind is not IMAGES:
            known: Schema = {"enum": kind.parts["benchmark"].names()}
            block = {"type": "object", "properties": {"name": known}, "required": ["name"]}
            its = {"properties": {"benchmark": _or_list({"anyOf": [known, block]})}}
            found = {"if": its | {"required": ["benchmark"]}, "then": words(kind), "else": found}
    return found


def inlined(model: type[BaseModel]) -> Schema:
    """The JSON schema of a model without references; a data set may be a bare name."""
    full = model.model_json_schema()
    definitions = full.pop("$defs", {})

    def resolve(part: Any) -> Any:
        if isinstance(part, list):
            return [resolve(p) for p in part]
        if not isinstance(part, dict):
            return part
        if "$ref" not in part:
            return {key: resolve(value) for key, value in part.items()}
        name = part["$ref"].rpartition("/")[2]
        found = resolve(definitions[name]) | {k: v for k, v in part.items() if k != "$ref"}
        if name != "DatasetConfig":
            return found
        about: Schema = {k: found.pop(k) for k in ("default", "description") if k in found}
        return {"anyOf": [found, {"type": "string"}], **about}

    resolved: Schema = resolve(full)
    return resolved


def spaced(part: Schema) -> Schema:
    """A schema each leaf of which may also be a search space."""
    if "properties" in part:
        return part | {"properties": {k: _or_space(v) for k, v in part["properties"].items()}}
    return part


def _or_space(part: Schema) -> Schema:
    about: Schema = {k: part[k] for k in ("description", "default") if k in part}
    inner: Schema = {k: v for k, v in part.items() if k not in about}
    if isinstance(inner.get("items"), dict):
        inner["items"] = _or_space(inner["items"])
    if "prefixItems" in inner:
        inner["prefixItems"] = [_or_space(item) for item in inner["prefixItems"]]
    return {"anyOf": [spaced(inner), SPACE], **about}


def _or_list(part: Schema) -> Schema:
    return {"anyOf": [part, {"type": "array", "minItems": 1, "items": part}]}


def _or_name(part: Schema, model: Schema) -> Schema:
    return {
        "anyOf": [{k: v for k, v in part.items() if k != "default"}, model["properties"]["name"]]
    }


def _partial(part: Schema) -> Schema:
    return {k: v for k, v in part.items() if k != "required"}


def _named_blocks(block: str, kinds: Iterable[Kind]) -> list[Schema]:
    """One schema per registered class, and one for classes from outside."""
    classes = registered(block, kinds)
    found: list[Schema] = [{"enum": sorted({name for _, name, _ in classes})}, EXTERNAL]
    for _, name, cls in classes:
        part = inlined(cls.Config)
        part["properties"]["name"] = {"const": name}
        for option in getattr(cls.Config, "networks", ()):  # blocks of further networks
            about = {k: v for k, v in part["properties"][option].items() if k == "description"}
            part["properties"][option] = {"$ref": "#/$defs/network", **about}
        part |= {"title": name, "description": (cls.__doc__ or "").strip().partition("\n")[0]}
        found.append(part)
    external = {"name": EXTERNAL}
    found.append({"type": "object", "properties": external, "required": ["name"]})
    return found


def _spaced_name(block: Schema) -> Schema:
    """A network's block with spaces, but for its name."""
    if "additionalProperties" not in block:
        return block
    spacious = spaced(block)
    spacious["properties"]["name"] = block["properties"]["name"]
    return spacious


def _methods(kind: Kind) -> list[Schema]:
    own = inlined(MethodEntry)["properties"]
    common = {
        "label": own["label"],
        "train": {"$ref": f"#/$defs/train-{kind.name}"},
        "network": {"type": ["object", "string"]},
        "resources": _partial(inlined(Resources)),
    }
    blocks = []
    for block in _named_blocks("method", [kind]):
        if "properties" in block:
            spacious = _spaced_name(block)
            block = spacious | {"properties": spacious["properties"] | common}
        blocks.append(block)
    return blocks


def _space() -> Schema:
    number: Schema = {"type": "number"}
    positive: Schema = {"type": "number", "exclusiveMinimum": 0}

    def tuple_of(*parts: Schema) -> Schema:
        return {
            "type": "array",
            "prefixItems": list(parts),
            "minItems": len(parts),
            "maxItems": len(parts),
        }

    values: dict[str, Schema] = {
        "grid": {"type": "array", "minItems": 1, "uniqueItems": True},
        "choice": {"type": "array", "minItems": 1},
        "uniform": tuple_of(number, number),
        "quniform": tuple_of(number, number, positive),
        "loguniform": tuple_of(positive, number),
        "qloguniform": tuple_of(positive, number, positive),
        "randint": tuple_of({"type": "integer"}, {"type": "integer"}),
    }
    return {
        "title": "search space",
        "anyOf": [
            {
                "type": "object",
                "properties": {kind: value},
                "required": [kind],
                "additionalProperties": False,
            }
            for kind, value in values.items()
        ],
    }
