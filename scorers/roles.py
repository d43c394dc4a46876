"""The label by which an endpoint says which stage of inference it serves."""

from __future__ import annotations

ROLE_LABEL = "llm-d.ai/role"

ENCODE = frozenset({"encode", "encode-prefill", "encode-prefill-decode"})
PREFILL = frozenset({"prefill", "encode-prefill", "prefill-decode", "both", "encode-prefill-decode"})
DECODE = frozenset({"decode", "prefill-decode", "both", "encode-prefill-decode"})
