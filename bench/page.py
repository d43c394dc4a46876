"""Pages that need nothing else: one file, readable on a phone, in black and white, and by who tells no red from green."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 0 auto; padding: 1.2rem 1rem 4rem; color: #222; background: #fff; }
h1 { font-size: 1.6rem; } h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 2.4rem; }
.answer { font-size: 1.15rem; line-height: 1.45; border-left: 4px solid #d55e00; padding-left: .8rem; max-width: 54rem; }
.small { color: #595959; font-size: .9rem; } p { max-width: 54rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e2e2e2; vertical-align: top; white-space: nowrap; }
th { border-bottom-color: #888; vertical-align: bottom; }
th.text, td.text { text-align: left; } td.long { white-space: normal; min-width: 16rem; }
tr.ours { background: #fdf0e6; font-weight: 600; } th.ours { background: #fdf0e6; }
th.turned { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; padding: .5rem .15rem; vertical-align: top; }
table.heat td { text-align: center; padding: .2rem .4rem; border: 1px solid #fff; font-variant-numeric: tabular-nums; }
table.heat td.text { text-align: left; } table.heat td.ours { border: 2px solid #d55e00; border-width: 0 2px; }
.good { color: #00598c; } .bad { color: #a33b00; font-weight: 600; } .open { color: #595959; }
figure { margin: 1.2rem 0; } figcaption { color: #595959; font-size: .9rem; max-width: 54rem; }
figure svg { width: 100%; min-width: 28rem; max-width: 54rem; height: auto; display: block; }
@media (max-width: 40rem) { td.text, th.text { white-space: normal; min-width: 8rem; } th, td { padding: .25rem .45rem; } }
code { color: #595959; font-size: .85em; } details { margin: .3rem 0; } summary { cursor: pointer; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 13px; }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page. `title` is text, `parts` are HTML."""
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        # Without it a browser asks the server, or the disk, for a favicon.
        f'<link rel="icon" href="data:,"><title>{text(title)}</title><style>{_STYLE}</style></head><body><h1>{text(title)}</h1>'
    )
    return "\n".join([head, *parts, "</body></html>\n"])


def table(head: Sequence[str], rows: Iterable[str], *, kind: str = "") -> str:
    """`head` and `rows` are HTML: `th` and whole `tr`. It scrolls by itself where the window is narrow."""
    opening = f'<table class="{kind}">' if kind else "<table>"
    return f'<div class="scroll">{opening}<thead><tr>{"".join(head)}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def figure(svg: str, title: str, caption: str) -> str:
    """A plot, called `title` for who does not see it. `caption` says how to read it; both are text."""
    named = svg.replace("<svg ", f'<svg role="img" aria-label="{text(title)}" ', 1)
    return f'<figure><div class="scroll">{named}</div><figcaption>{text(caption)}</figcaption></figure>'


def text(words: str) -> str:
    """As HTML, also within quotes."""
    return html.escape(words)
