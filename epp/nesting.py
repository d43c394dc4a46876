"""How deep a YAML or JSON text nests, found out without building it."""

from __future__ import annotations

import yaml


def is_deeper(text: str, levels: int) -> bool:
    """Whether `text` nests deeper than `levels` before its end, or before the first place where it is no YAML.

    Ask before composing: the composer recurses, in C without a limit, and 100,000 opening brackets overflow its stack and
    kill the process.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > levels:
                    return True
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    except (yaml.YAMLError, UnicodeEncodeError):
        # Whoever composes the text meets the same mistake at the same place, and has the words for it.
        return False
    return False
