{{/* Of (list scope name selector): one at a time. */}}
{{- define "epp.disruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
{{ include "epp.metadata" (list (index . 0) (index . 1)) }}
spec:
  maxUnavailable: 1
  # One that is not ready anyway does not hold up a node's drain.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- toYaml (index . 2) | nindent 6 }}
{{- end -}}

{{- define "epp.availability" -}}
{{- $epp := .router.epp -}}
{{- /* With a leader the others are never ready: a budget would let nobody ever evict it. */ -}}
{{- if and .several (not .elected) $epp.podDisruptionBudget.enabled -}}
{{ include "epp.disruptionBudget" (list . .name .selector) }}
{{- end }}
{{- with $epp.autoscaling }}{{ if .enabled }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
{{ include "epp.metadata" (list $ $.name) }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ $.name }}}
  minReplicas: {{ .minReplicas }}
  maxReplicas: {{ .maxReplicas }}
  metrics:
  {{- if .metrics }}
  {{- toYaml .metrics | nindent 2 }}
  {{- else }}
  {{- range $resource, $percent := dict "cpu" .targetCPUUtilizationPercentage "memory" .targetMemoryUtilizationPercentage }}
  {{- with $percent }}
  - type: Resource
    resource:
      name: {{ $resource }}
      target: {type: Utilization, averageUtilization: {{ . }}}
  {{- end }}
  {{- end }}
  {{- end }}
  {{- with .behavior }}
  behavior:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}{{ end }}
{{- end -}}
