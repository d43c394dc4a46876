{{- define "epp.proxyConfig" -}}
apiVersion: v1
kind: ConfigMap
{{ include "epp.metadata" (list . (include "epp.proxyName" .)) }}
data:
{{- range $name, $text := mergeOverwrite (dict "envoy.yaml" (include "epp.envoy" .)) .router.proxy.configMapData }}
  {{ $name }}: |
    {{- $text | trim | nindent 4 }}
{{- end }}
{{- end -}}

{{- define "epp.proxyVolumes" -}}
- name: envoy
  configMap: {name: {{ include "epp.proxyName" . }}}
{{- with .router.proxy.volumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Envoy's container; what the values say of it goes before what is written here. */}}
{{- define "epp.proxyContainer" -}}
{{- $proxy := .router.proxy -}}
{{- $container := include "epp.envoyContainer" . | fromYaml -}}
{{- range $key := list "name" "command" "args" "env" "ports" "livenessProbe" "readinessProbe" "startupProbe" }}
{{- with get $proxy $key }}{{ $_ := set $container $key . }}{{ end }}
{{- end -}}
{{- $_ := set $container "volumeMounts" (concat $container.volumeMounts $proxy.volumeMounts) -}}
{{- toYaml $container -}}
{{- end -}}

{{- define "epp.envoyContainer" -}}
{{- $proxy := .router.proxy -}}
name: envoy
image: {{ $proxy.image }}
imagePullPolicy: {{ $proxy.imagePullPolicy }}
command: [envoy]
# Hot restart wants shared memory, and nothing here uses it.
args: [-c, /etc/envoy/envoy.yaml, --concurrency, {{ $proxy.concurrency | quote }}, --disable-hot-restart, --log-level, warn]
ports:
- {name: http, containerPort: {{ include "epp.proxyPort" . }}}
- {name: envoy-ready, containerPort: 19001}
readinessProbe:
  httpGet: {path: /ready, port: envoy-ready}
  periodSeconds: 2
lifecycle:
  # Envoy ends at once when told to: until then no new connection comes, and answers go on.
  preStop: {sleep: {seconds: {{ $proxy.drainSeconds }}}}
resources:
  {{- toYaml $proxy.resources | nindent 2 }}
securityContext:
  {{- toYaml $proxy.securityContext | nindent 2 }}
volumeMounts:
- {name: envoy, mountPath: /etc/envoy, readOnly: true}
{{- if .sidecar }}
- {name: eds, mountPath: /eds, readOnly: true}
{{- end }}
{{- end -}}

{{/* Envoy's own Deployment, its Service, and the Service by which it finds the model servers. */}}
{{- define "epp.proxyService" -}}
{{- $proxy := .router.proxy -}}
{{- $name := include "epp.proxyName" . -}}
apiVersion: apps/v1
kind: Deployment
{{ include "epp.metadata" (list . $name) }}
spec:
  replicas: {{ $proxy.replicas }}
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
  selector:
    matchLabels:
      {{- toYaml .proxySelector | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "epp.podLabels" (list . .proxySelector) | nindent 8 }}
      annotations:
        checksum/envoy: {{ include "epp.envoy" . | sha256sum }}
    spec:
      automountServiceAccountToken: false
      {{- with .router.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      terminationGracePeriodSeconds: {{ add $proxy.drainSeconds 10 }}
      securityContext:
        {{- toYaml .router.epp.podSecurityContext | nindent 8 }}
      {{- with include "epp.podPlacement" .router.epp | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with include "epp.spread" (list .proxySelector (gt (int $proxy.replicas) 1) list) }}
      {{- . | nindent 6 }}
      {{- end }}
      containers:
      - {{ include "epp.proxyContainer" . | indent 8 | trim }}
      volumes:
      {{- include "epp.proxyVolumes" . | nindent 6 }}
---
apiVersion: v1
kind: Service
{{ include "epp.metadata" (list . $name) }}
spec:
  selector:
    {{- toYaml .proxySelector | nindent 4 }}
  ports:
  {{- toYaml .router.extraServicePorts | nindent 2 }}
---
apiVersion: v1
kind: Service
{{ include "epp.metadata" (list . (include "epp.serversName" .)) }}
spec:
  clusterIP: None
  selector:
    {{- toYaml .router.modelServers.matchLabels | nindent 4 }}
  ports:
  {{- range .router.modelServers.targetPorts }}
  - {name: http-{{ .number }}, port: {{ .number }}}
  {{- end }}
{{- if gt (int $proxy.replicas) 1 }}
---
{{ include "epp.disruptionBudget" (list . $name .proxySelector) }}
{{- end }}
{{- end -}}
