"""The text of an endpoints file, read strictly: every mistake is named by file, line, path and, for a name, the nearest one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import yaml

from epp.discovery.names import host
from epp.discovery.source import DiscoveryError
from epp.endpoint import Endpoint
from epp.nesting import is_deeper

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
METRICS_ADDRESS = "metricsAddress"
METRICS_PORT = "metricsPort"

_NULL = "tag:yaml.org,2002:null"


def parse_endpoints(data: bytes, file: str) -> tuple[Endpoint, ...]:
    """The endpoints in `data`, YAML or JSON. `file` is what the messages call it.

    Raises DiscoveryError where the text is not what the format wants: `endpoints` with `name`, `namespace` ("default"),
    `address`, `port` and `labels` each. Of the labels, `metricsAddress` and `metricsPort` tell where metrics are.
    """
    if len(data) > MAX_BYTES:
        raise DiscoveryError(f"{file} has {len(data)} bytes; at most {MAX_BYTES} are allowed")
    root = _compose(data, file)
    if root is None:
        raise DiscoveryError(f"{file} is empty; a pool that is meant to be empty is written `endpoints: []`")
    reader = _Reader(file)
    fields = reader.fields(root, "", required=("endpoints",))
    listed = [
        (reader.endpoint(node, f"endpoints[{number}]"), node)
        for number, node in enumerate(reader.items(fields["endpoints"], "endpoints"))
    ]
    reader.refuse_repeats(listed, lambda one: one.key, "name")
    reader.refuse_repeats(listed, lambda one: one.destination, "address and port")
    return tuple(endpoint for endpoint, _ in listed)


def _compose(data: bytes, file: str) -> yaml.Node | None:
    try:
        text = data.decode()
        if text.lstrip().startswith("{"):
            # Tabs between JSON's tokens are right in JSON and wrong in YAML; in its strings they are wrong in both.
            text = text.replace("\t", " ")
        if is_deeper(text, MAX_DEPTH):
            raise DiscoveryError(f"{file}: nested deeper than {MAX_DEPTH} levels")
        node: yaml.Node | None = yaml.compose(text, Loader=yaml.CSafeLoader)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DiscoveryError(f"{file}:{line}: not UTF-8") from None
    except yaml.MarkedYAMLError as error:
        # A mistake at the end is marked behind the last line.
        line = min(error.problem_mark.line, data.count(b"\n")) + 1 if error.problem_mark else 1
        raise DiscoveryError(f"{file}:{line}: neither YAML nor JSON: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise DiscoveryError(f"{file}: neither YAML nor JSON: {error}") from None
    return node


class _Reader:
    def __init__(self, file: str) -> None:
        self._file = file

    def mistake(self, node: yaml.Node, path: str, what: str) -> DiscoveryError:
        place = f"{self._file}:{node.start_mark.line + 1}"
        return DiscoveryError(f"{place}: {path}: {what}" if path else f"{place}: {what}")

    def fields(
        self, node: yaml.Node, path: str, *, required: Sequence[str], optional: Sequence[str] = ()
    ) -> dict[str, yaml.Node]:
        found = self.mapping(node, path)
        for name, (key, _) in found.items():
            if name not in required and name not in optional:
                near = difflib.get_close_matches(name, [*required, *optional], n=1)
                meant = f"did you mean {near[0]!r}?" if near else f"known are {', '.join([*required, *optional])}"
                raise self.mistake(key, path, f"unknown field {name!r}; {meant}")
        for name in required:
            if name not in found:
                raise self.mistake(node, path, f"lacks {name!r}")
        return {name: value for name, (_, value) in found.items()}

    def mapping(self, node: yaml.Node, path: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Key and value nodes by name."""
        if not isinstance(node, yaml.MappingNode):
            raise self.mistake(node, path, "must be a mapping of names to values")
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            name = self.text(key, path)
            if name in found:
                raise self.mistake(key, path, f"{name!r} is given twice")
            found[name] = (key, value)
        return found

    def items(self, node: yaml.Node, path: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.mistake(node, path, "must be a list; no endpoints at all is written []")
        items: list[yaml.Node] = node.value
        return items

    def text(self, node: yaml.Node, path: str) -> str:
        """A scalar as it is written: `8000` and `"8000"` are the same."""
        if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL:
            raise self.mistake(node, path, "must be a text or a number")
        value: str = node.value
        return value

    def endpoint(self, node: yaml.Node, path: str) -> Endpoint:
        fields = self.fields(node, path, required=("name", "address", "port"), optional=("namespace", "labels"))

        def read(name: str, reading: Callable[[yaml.Node, str], str], default: str) -> str:
            return reading(fields[name], f"{path}.{name}") if name in fields else default

        at = f"{path}.labels"
        labels = self.mapping(fields["labels"], at) if "labels" in fields else {}
        metrics_address, metrics_port = labels.get(METRICS_ADDRESS), labels.get(METRICS_PORT)
        return Endpoint(
            name=read("name", self.name, ""),
            namespace=read("namespace", self.name, "default"),
            address=read("address", self.address, ""),
            port=self.port(fields["port"], f"{path}.port"),
            labels={name: self.text(value, f"{at}.{name}") for name, (_, value) in labels.items()},
            metrics_address=self.address(metrics_address[1], f"{at}.{METRICS_ADDRESS}") if metrics_address else None,
            metrics_port=self.port(metrics_port[1], f"{at}.{METRICS_PORT}") if metrics_port else None,
        )

    def name(self, node: yaml.Node, path: str) -> str:
        text = self.text(node, path)
        if not text or "/" in text or any(character.isspace() for character in text):
            raise self.mistake(node, path, f"{text!r} must have no spaces or slashes and not be empty")
        return text

    def address(self, node: yaml.Node, path: str) -> str:
        text = self.text(node, path)
        address = host(text)
        if address is None:
            raise self.mistake(node, path, f"{text!r} is neither an IP nor a DNS name")
        return address

    def port(self, node: yaml.Node, path: str) -> int:
        text = self.text(node, path)
        port = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0
        if not 0 < port < 65536:
            raise self.mistake(node, path, f"{text!r} is no port; it must be in 1..65535")
        return port

    def refuse_repeats(
        self, listed: Sequence[tuple[Endpoint, yaml.Node]], by: Callable[[Endpoint], str], what: str
    ) -> None:
        first: dict[str, int] = {}
        for number, (endpoint, node) in enumerate(listed):
            other = first.setdefault(by(endpoint), number)
            if other != number:
                raise self.mistake(
                    node, f"endpoints[{number}]", f"has the {what} of endpoints[{other}]: {by(endpoint)}"
                )
