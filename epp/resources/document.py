"""The text of a manifest file, several documents long, into objects; what is wrong is named by file, line and path."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise

import msgspec
import yaml
from yaml.constructor import ConstructorError

from epp.nesting import is_deeper
from epp.resources.objects import Key, Resource
from epp.resources.reading import Refused, identity, read_object

MAX_BYTES = 1 << 20
"""Largest file. Reading one of this size takes a second, one of 4 KB 3 ms."""

MAX_DEPTH = 32
MAX_NODES = 200_000
"""Values in one document, counted with what its aliases repeat: a few lines of aliases can stand for billions."""

# In YAML nothing but the start of a document can stand at the beginning of a line as three dashes.
_START = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_STEP = re.compile(r"\.([^.\[]+)|\[([^\]]*)\]")
_CONSTRUCTOR = yaml.constructor.SafeConstructor()


class Refusal(msgspec.Struct, frozen=True):
    """A document that is left out. `key` is the object that it was meant to be, None where not even that can be told."""

    place: str
    path: str
    reason: str
    key: Key | None = None

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.place, self.path, self.reason)))


class Manifest(msgspec.Struct, frozen=True):
    """What one file holds. `others` are objects of kinds that do not matter here, in words with their places."""

    objects: tuple[Resource, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    others: tuple[str, ...] = ()


def read_manifest(data: bytes, file: str, namespace: str) -> Manifest:
    """Everything in `data`, YAML or JSON. Of two documents about one object the first counts, the other is refused.

    `file` is what places are called by, `namespace` where objects are that do not say.
    """
    if len(data) > MAX_BYTES:
        return Manifest(refusals=(Refusal(file, "", f"has {len(data)} bytes; at most {MAX_BYTES} are allowed"),))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return Manifest(refusals=(Refusal(f"{file}:{line}", "", "not UTF-8"),))
    objects: dict[Key, Resource] = {}
    refusals: list[Refusal] = []
    others: list[str] = []
    for first_line, chunk in _documents(text):
        try:
            nodes = _objects_in(_compose(chunk))
        except _Unreadable as unreadable:
            refusals.append(Refusal(f"{file}:{first_line + unreadable.line}", "", unreadable.reason))
            continue
        for node in nodes:
            _take(node, file, first_line, namespace, objects, refusals, others)
    return Manifest(tuple(objects.values()), tuple(refusals), tuple(others))


def _take(
    node: yaml.Node,
    file: str,
    first_line: int,
    namespace: str,
    objects: dict[Key, Resource],
    refusals: list[Refusal],
    others: list[str],
) -> None:
    place = f"{file}:{first_line + node.start_mark.line}"
    value: object = None
    try:
        value = _Values().of(node)
        found = read_object(value, namespace=namespace, origin=place, strict=True)
    except Refused as refused:
        at = f"{file}:{first_line + _line_at(node, refused.path)}"
        refusals.append(Refusal(at, refused.path, refused.reason, identity(value, namespace)))
    except _Unreadable as unreadable:
        refusals.append(Refusal(f"{file}:{first_line + unreadable.line}", "", unreadable.reason))
    else:
        if found is None:
            others.append(f"{place}: {_called(value)}")
        elif found.key in objects:
            reason = f"{found.key} is already at {objects[found.key].origin}"
            refusals.append(Refusal(place, "", reason, found.key))
        else:
            objects[found.key] = found


def _called(value: object) -> str:
    if not isinstance(value, Mapping):
        return "nothing"
    metadata = value.get("metadata")
    name = metadata.get("name", "") if isinstance(metadata, Mapping) else ""
    return f"{value.get('kind')} {name} ({value.get('apiVersion')})"


class _Unreadable(Exception):
    """No YAML, or YAML that stands for no JSON. `line` counts from 0 at the document's start."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


def _documents(text: str) -> Iterator[tuple[int, str]]:
    """Each document with its first line, counted from 1. They are read one by one so that a broken one spoils no other."""
    starts = [match.start() for match in _START.finditer(text)]
    edges = [0, *starts, len(text)]
    line = 1
    for start, end in pairwise(edges):
        chunk = text[start:end]
        yield line, chunk
        line += chunk.count("\n")


def _compose(chunk: str) -> yaml.Node | None:
    if chunk.lstrip().startswith("{"):
        # Tabs between JSON's tokens are right in JSON and wrong in YAML; in its strings they are wrong in both.
        chunk = chunk.replace("\t", " ")
    if is_deeper(chunk, MAX_DEPTH):
        raise _Unreadable(0, f"nested deeper than {MAX_DEPTH} levels")
    try:
        node: yaml.Node | None = yaml.compose(chunk, Loader=yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        # A mistake at the end is marked behind the last line.
        line = min(error.problem_mark.line, chunk.count("\n")) if error.problem_mark else 0
        raise _Unreadable(line, f"neither YAML nor JSON: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError, UnicodeEncodeError) as error:
        raise _Unreadable(0, f"neither YAML nor JSON: {str(error).splitlines()[0]}") from None
    return node


def _objects_in(node: yaml.Node | None) -> list[yaml.Node]:
    """The document itself, nothing where it is empty, or the items of a List such as `kubectl get -o yaml` writes."""
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"):
        return []
    kind, items = _child(node, "kind"), _child(node, "items")
    if isinstance(kind, yaml.ScalarNode) and kind.value.endswith("List") and isinstance(items, yaml.SequenceNode):
        return list(items.value)
    return [node]


class _Values:
    """Turns nodes into what JSON could hold, counting them."""

    def __init__(self) -> None:
        self._left = MAX_NODES

    def of(self, node: yaml.Node, depth: int = 0) -> object:
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            raise _Unreadable(node.start_mark.line, "too large with its aliases written out")
        if isinstance(node, yaml.SequenceNode):
            return [self.of(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, depth)
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, object]:
        _refuse_repeats(node)
        try:
            _CONSTRUCTOR.flatten_mapping(node)
        except ConstructorError as error:
            raise _Unreadable(node.start_mark.line, str(error.problem)) from None
        # What a merge key (`<<`) brings in comes first, so that the mapping's own keys win.
        return {_key(key): self.of(value, depth + 1) for key, value in node.value}


def _refuse_repeats(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        name = _key(key)
        if name in seen:
            raise _Unreadable(key.start_mark.line, f"{name!r} is given twice")
        seen.add(name)


def _key(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _Unreadable(node.start_mark.line, "a key must be a text")
    return str(node.value)


def _scalar(node: yaml.Node) -> object:
    kind = node.tag.rpartition(":")[2]
    if kind in ("str", "timestamp"):
        return str(node.value)
    try:
        value: object = _CONSTRUCTOR.construct_object(node)
    except (ConstructorError, ValueError):
        raise _Unreadable(node.start_mark.line, f"cannot use a value of type {node.tag}") from None
    if value is None or isinstance(value, (int, float, bool)):
        return value
    raise _Unreadable(node.start_mark.line, f"cannot use a value of type {node.tag}")


def _child(node: yaml.Node, step: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == step), None)
    if isinstance(node, yaml.SequenceNode) and step.isdecimal() and int(step) < len(node.value):
        item: yaml.Node = node.value[int(step)]
        return item
    return None


def _line_at(node: yaml.Node, path: str) -> int:
    """Where `path` leads, as far as it goes, counted from 0 at the document's start."""
    line = int(node.start_mark.line)
    for name, index in _STEP.findall(f".{path}" if path else ""):
        if isinstance(node, yaml.MappingNode):
            line = next((int(key.start_mark.line) for key, _ in node.value if key.value == name), line)
        child = _child(node, name or index)
        if child is None:
            return line
        node = child
        if index:
            line = int(node.start_mark.line)
    return line
