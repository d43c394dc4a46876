{{/* What the picker asks of the API server, and no more. */}}
{{- define "epp.rbac" -}}
{{- $subject := printf "- {kind: ServiceAccount, name: %s, namespace: %s}" .name .namespace -}}
apiVersion: v1
kind: ServiceAccount
{{ include "epp.metadata" (list . .name) }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
{{ include "epp.metadata" (list . .name) }}
rules:
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
{{- if .router.inferencePool.create }}
- apiGroups: [{{ include "epp.poolGroup" . }}]
  resources: [inferencepools]
  verbs: [list, watch]
- apiGroups: [llm-d.ai, inference.networking.x-k8s.io]
  resources: [inferenceobjectives, inferencemodelrewrites]
  verbs: [list, watch]
- apiGroups: [inference.networking.x-k8s.io]
  resources: [inferencemodels]
  verbs: [list, watch]
{{- end }}
{{- if .elected }}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, create, update]
{{- end }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
{{ include "epp.metadata" (list . .name) }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ .name }}}
subjects:
{{ $subject }}
{{- if .router.monitoring.prometheus.auth.enabled }}
---
# Who may read /metrics is asked of the API server; these are no objects of a namespace.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
{{ include "epp.metadata" (list . (printf "%s-%s" .name .namespace)) }}
rules:
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
- apiGroups: [authorization.k8s.io]
  resources: [subjectaccessreviews]
  verbs: [create]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
{{ include "epp.metadata" (list . (printf "%s-%s" .name .namespace)) }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ .name }}-{{ .namespace }}}
subjects:
{{ $subject }}
{{- end }}
{{- end -}}
