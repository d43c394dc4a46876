"""What holds where the file says nothing."""

from __future__ import annotations

from typing import Final

DEFAULT_TEXT: Final = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: least-delay-scorer
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: least-delay-scorer
  - pluginRef: max-score-picker
"""
"""The default policy: each request where it delays itself and the others least (docs/policy.md)."""

DEFAULT_WEIGHTS: Final = {"least-delay-scorer": 1.0}
"""The same, for a file that sets up other parts and leaves the policy open."""
DEFAULT_PICKER: Final = "max-score-picker"
DEFAULT_HANDLER: Final = "single-profile-handler"
DEFAULT_DETECTOR: Final = "utilization-detector"
DEFAULT_PARSERS: Final = ("openai-parser", "anthropic-parser", "vllmhttp-parser", "passthrough-parser")
