"""What holds where the file says nothing."""

from __future__ import annotations

from typing import Final

DEFAULT_TEXT: Final = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: prefix-cache-scorer
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: lora-affinity-scorer
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: prefix-cache-scorer
    weight: 3
  - pluginRef: queue-scorer
    weight: 2
  - pluginRef: kv-cache-utilization-scorer
    weight: 2
  - pluginRef: lora-affinity-scorer
    weight: 1
  - pluginRef: max-score-picker
"""
"""The default policy: the Go picker's three scorers in its proportions, and adapters."""

DEFAULT_WEIGHTS: Final = {
    "prefix-cache-scorer": 3.0,
    "queue-scorer": 2.0,
    "kv-cache-utilization-scorer": 2.0,
    "lora-affinity-scorer": 1.0,
}
"""The same, for a file that sets up other parts and leaves the policy open."""

DEFAULT_PICKER: Final = "max-score-picker"
DEFAULT_HANDLER: Final = "single-profile-handler"
DEFAULT_DETECTOR: Final = "utilization-detector"
DEFAULT_PARSERS: Final = ("openai-parser", "anthropic-parser", "vllmhttp-parser", "passthrough-parser")
