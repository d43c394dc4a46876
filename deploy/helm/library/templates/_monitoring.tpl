{{- define "epp.monitoring" -}}
{{- $monitoring := .router.monitoring -}}
{{- $auth := $monitoring.prometheus.auth -}}
{{- $secret := include "epp.readerSecret" . -}}
{{- if $monitoring.prometheus.enabled -}}
{{- if eq $monitoring.provider.name "gmp" -}}
apiVersion: monitoring.googleapis.com/v1
kind: PodMonitoring
{{ include "epp.metadata" (list . .name) }}
spec:
  selector:
    matchLabels:
      {{- toYaml .selector | nindent 6 }}
  endpoints:
  - port: metrics
    scheme: http
    path: /metrics
    interval: {{ $monitoring.interval }}
    {{- if $auth.enabled }}
    authorization:
      type: Bearer
      credentials: {secret: {name: {{ $secret }}, key: token}}
    {{- end }}
{{- else -}}
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata:
  name: {{ .name }}
  labels:
    {{- merge (deepCopy $monitoring.prometheus.extraLabels) .labels | toYaml | nindent 4 }}
spec:
  selector:
    matchLabels:
      {{- pick .labels "app.kubernetes.io/name" "app.kubernetes.io/instance" | toYaml | nindent 6 }}
  endpoints:
  - port: http-metrics
    path: /metrics
    interval: {{ $monitoring.interval }}
    {{- if $auth.enabled }}
    authorization:
      type: Bearer
      credentials: {name: {{ $secret }}, key: token}
    {{- end }}
{{- end }}
{{- if $auth.enabled }}
---
# Who reads: an account that may read /metrics and nothing else.
apiVersion: v1
kind: ServiceAccount
{{ include "epp.metadata" (list . (printf "%s-metrics-reader" .name)) }}
automountServiceAccountToken: false
---
apiVersion: v1
kind: Secret
metadata:
  name: {{ $secret }}
  labels:
    {{- toYaml .labels | nindent 4 }}
  annotations:
    kubernetes.io/service-account.name: {{ .name }}-metrics-reader
type: kubernetes.io/service-account-token
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
{{ include "epp.metadata" (list . (printf "%s-%s-metrics-reader" .name .namespace)) }}
rules:
- nonResourceURLs: [/metrics]
  verbs: [get]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
{{ include "epp.metadata" (list . (printf "%s-%s-metrics-reader" .name .namespace)) }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ .name }}-{{ .namespace }}-metrics-reader}
subjects:
- {kind: ServiceAccount, name: {{ .name }}-metrics-reader, namespace: {{ .namespace }}}
{{- if eq $monitoring.provider.name "gmp" }}
---
# Google's collector fetches the token.
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
{{ include "epp.metadata" (list . (printf "%s-metrics-secret" .name)) }}
rules:
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [{{ $secret }}]
  verbs: [get, list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
{{ include "epp.metadata" (list . (printf "%s-metrics-secret" .name)) }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ .name }}-metrics-secret}
subjects:
- {kind: ServiceAccount, name: collector, namespace: {{ ternary "gke-gmp-system" "gmp-system" $monitoring.provider.gmp.autopilot }}}
{{- end }}
{{- end }}
{{- end -}}
{{- end -}}
