"""YAML and JSON text into nodes that remember their lines."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml
from yaml.constructor import ConstructorError

from epp.configuration.problems import Problems
from epp.nesting import is_deeper

MAX_DEPTH = 32
"""Levels of nesting in a configuration; what the plugins know needs eight."""

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_CONSTRUCTOR = yaml.constructor.SafeConstructor()


def line_of(node: yaml.Node) -> int:
    """Counted from 1."""
    return int(node.start_mark.line) + 1


def parse(text: str, problems: Problems) -> yaml.Node | None:
    """The text's one document. None, with a problem added, where there is none or it cannot be read."""
    if text.lstrip().startswith("{"):
        # JSON may be indented by tabs, which YAML forbids. In JSON a tab never stands inside a string.
        text = text.replace("\t", " ")
    if is_deeper(text, MAX_DEPTH):
        problems.add(1, "", f"nested deeper than {MAX_DEPTH} levels")
        return None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problems.add(line, "", " ".join(filter(None, (error.context, error.problem))))
        return None
    except (yaml.YAMLError, RecursionError) as error:
        problems.add(1, "", f"cannot be read as YAML: {str(error).splitlines()[0]}")
        return None
    if node is None:
        problems.add(1, "", "the file is empty")
    return node


def entries(node: yaml.MappingNode, path: str, problems: Problems) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """(key, its node, the value's node), each key once: a repeated key or one that is no text is a problem."""
    seen: dict[str, int] = {}
    for key, _ in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else None
        if not isinstance(name, str) or not isinstance(key, yaml.ScalarNode):
            problems.add(line_of(key), path, "a key must be text")
        elif name in seen:
            problems.add(line_of(key), f"{path}.{name}".lstrip("."), f"given before on line {seen[name]}")
        else:
            seen[name] = line_of(key)
    try:
        _CONSTRUCTOR.flatten_mapping(node)
    except ConstructorError as error:
        problems.add(line_of(node), path, str(error.problem))
    # What a merge key (`<<`) brings in comes first, so that the mapping's own keys win.
    own = {key.value: (key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}
    for name, (key, value) in own.items():
        yield name, key, value


def is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def scalar(node: yaml.ScalarNode) -> str | int | float | bool | None:
    """The value as YAML 1.1 sees it, and `1e6` as a number as JSON sees it. Raises ValueError."""
    kind = node.tag.rpartition(":")[2]
    if kind == "str":
        plain = node.style is None and _NUMBER.fullmatch(node.value)
        return float(node.value) if plain else str(node.value)
    if kind == "timestamp":
        return str(node.value)
    try:
        value = _CONSTRUCTOR.construct_object(node)
    except ConstructorError:
        raise ValueError(f"{node.tag} is no type that a value can have here; quote text that begins with !") from None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise ValueError(f"cannot use a value of type {node.tag}")


def spoken(node: yaml.Node) -> str:
    """What stands there, for a message."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if is_null(node):
        return "nothing"
    return repr(node.value) if node.tag == "tag:yaml.org,2002:str" else str(node.value)
