{{- define "epp.pool" -}}
{{- $pool := .router.inferencePool -}}
{{- $servers := .router.modelServers -}}
{{- $failure := ternary "FailOpen" "FailClose" (eq $pool.failureMode "FailOpen") -}}
{{- if $pool.create -}}
apiVersion: {{ $pool.apiVersion }}
kind: InferencePool
{{ include "epp.metadata" (list . .pool) }}
spec:
  {{- if hasSuffix "/v1" $pool.apiVersion }}
  selector:
    matchLabels:
      {{- toYaml $servers.matchLabels | nindent 6 }}
  targetPorts:
    {{- toYaml $servers.targetPorts | nindent 4 }}
  endpointPickerRef:
    name: {{ .name }}
    port: {number: {{ .router.epp.extProcPort }}}
    failureMode: {{ $failure }}
  {{- else }}
  selector:
    {{- toYaml $servers.matchLabels | nindent 4 }}
  targetPortNumber: {{ (first $servers.targetPorts).number }}
  extensionRef:
    name: {{ .name }}
    portNumber: {{ .router.epp.extProcPort }}
    failureMode: {{ $failure }}
  {{- end }}
{{- range .router.inferenceObjectives }}
---
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceObjective
{{ include "epp.metadata" (list $ .name) }}
spec:
  {{- with .priority }}
  priority: {{ . }}
  {{- end }}
  poolRef: {group: {{ include "epp.poolGroup" $ }}, kind: InferencePool, name: {{ $.pool }}}
{{- end }}
{{- end -}}
{{- end -}}
