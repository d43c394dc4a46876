{{/* Of (list ports peers): one rule of ingress; no peers is anyone. */}}
{{- define "epp.ingress" -}}
- ports:
  {{- range index . 0 }}
  - {protocol: TCP, port: {{ . }}}
  {{- end }}
  {{- with index . 1 }}
  from:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "epp.networkPolicy" -}}
{{- $policy := .router.networkPolicy -}}
{{- $extProc := list .router.epp.extProcPort -}}
{{- if $policy.enabled -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
{{ include "epp.metadata" (list . .name) }}
spec:
  podSelector:
    matchLabels:
      {{- toYaml .selector | nindent 6 }}
  policyTypes: [Ingress]
  ingress:
  {{- if .sidecar }}
  # The picker's own port is for Envoy, on the loopback interface only.
  {{- include "epp.ingress" (list (list (include "epp.proxyPort" .)) $policy.clients) | nindent 2 }}
  {{- else if .standalone }}
  {{- include "epp.ingress" (list $extProc (list (dict "podSelector" (dict "matchLabels" .proxySelector)))) | nindent 2 }}
  {{- else }}
  {{- include "epp.ingress" (list $extProc $policy.clients) | nindent 2 }}
  {{- end }}
  {{- include "epp.ingress" (list (list .router.epp.grpcHealthPort) nil) | nindent 2 }}
  {{- include "epp.ingress" (list (ternary (list 9090 19001) (list 9090) .sidecar) $policy.monitoring) | nindent 2 }}
{{- if and .standalone (not .sidecar) }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
{{ include "epp.metadata" (list . (include "epp.proxyName" .)) }}
spec:
  podSelector:
    matchLabels:
      {{- toYaml .proxySelector | nindent 6 }}
  policyTypes: [Ingress]
  ingress:
  {{- include "epp.ingress" (list (list (include "epp.proxyPort" .)) $policy.clients) | nindent 2 }}
  {{- include "epp.ingress" (list (list 19001) $policy.monitoring) | nindent 2 }}
{{- end }}
{{- end -}}
{{- end -}}
