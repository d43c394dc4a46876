{{- define "epp.args" -}}
{{- $router := .router -}}
{{- $epp := $router.epp -}}
{{- if $router.inferencePool.create }}
- --pool-name={{ .pool }}
- --pool-group={{ include "epp.poolGroup" . }}
{{- else }}
{{- $labels := list }}
{{- range $key, $value := $router.modelServers.matchLabels }}{{ $labels = append $labels (printf "%s=%s" $key $value) }}{{ end }}
- --endpoint-selector={{ join "," $labels }}
{{- $ports := list }}
{{- range $router.modelServers.targetPorts }}{{ $ports = append $ports (toString .number) }}{{ end }}
- --endpoint-target-ports={{ join "," $ports }}
{{- end }}
- --config-file=/etc/epp/{{ $epp.pluginsConfigFile }}
- --grpc-port={{ $epp.extProcPort }}
- --grpc-health-port={{ $epp.grpcHealthPort }}
- --drain-timeout={{ max 1 (sub (int $epp.terminationGracePeriodSeconds) 10) }}s
- --zap-encoder=json
{{- $source := $epp.metricsDataSource }}
{{- if ne $source.scheme "http" }}
- --model-server-metrics-scheme={{ $source.scheme }}
- --model-server-metrics-https-insecure-skip-verify={{ $source.insecureSkipVerify }}
{{- end }}
{{- if ne $source.path "/metrics" }}
- --model-server-metrics-path={{ $source.path }}
{{- end }}
{{- if not $router.monitoring.prometheus.auth.enabled }}
- --metrics-endpoint-auth=false
{{- end }}
{{- if $router.tracing.enabled }}
- --tracing=true
{{- end }}
{{- if .sidecar }}
# Envoy is in the same pod and asks over the loopback interface.
- --secure-serving=false
- --envoy-eds-file=/eds/servers.yaml
{{- end }}
{{- range $flag, $value := $epp.flags }}
- {{ printf "--%s=%v" $flag $value | quote }}
{{- end }}
{{- end -}}

{{- define "epp.container" -}}
{{- $epp := .router.epp -}}
name: epp
image: {{ include "epp.image" . }}
imagePullPolicy: {{ $epp.image.pullPolicy }}
args:
{{- include "epp.args" . }}
env:
- name: NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- with $epp.env }}
{{ toYaml . }}
{{- end }}
ports:
- {name: grpc, containerPort: {{ $epp.extProcPort }}}
- {name: grpc-health, containerPort: {{ $epp.grpcHealthPort }}}
- {name: metrics, containerPort: 9090}
{{- with $epp.extraContainerPorts }}
{{ toYaml . }}
{{- end }}
livenessProbe:
  grpc: {port: {{ $epp.grpcHealthPort }}, service: liveness}
  periodSeconds: 10
  failureThreshold: 3
{{- if .sidecar }}
# Envoy starts once its list of servers is there. No readiness after that: without the picker Envoy goes on, so the
# pod must stay in its Service.
startupProbe:
  grpc: {port: {{ $epp.grpcHealthPort }}, service: readiness}
  periodSeconds: 1
  failureThreshold: 300
{{- else }}
readinessProbe:
  grpc: {port: {{ $epp.grpcHealthPort }}, service: readiness}
  periodSeconds: 2
{{- end }}
resources:
  {{- toYaml $epp.resources | nindent 2 }}
securityContext:
  {{- toYaml $epp.securityContext | nindent 2 }}
volumeMounts:
- {name: config, mountPath: /etc/epp, readOnly: true}
{{- if .sidecar }}
- {name: eds, mountPath: /eds}
{{- end }}
{{- with $epp.volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "epp.podPlacement" -}}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "epp.deployment" -}}
{{- $epp := .router.epp -}}
apiVersion: apps/v1
kind: Deployment
{{ include "epp.metadata" (list . .name) }}
spec:
  {{- if not $epp.autoscaling.enabled }}
  replicas: {{ $epp.replicas }}
  {{- end }}
  strategy:
    {{- if $epp.deploymentStrategy }}
    {{- toYaml $epp.deploymentStrategy | nindent 4 }}
    {{- else if .elected }}
    # Only the leader is ever ready, so a rolling update would wait for ever for a second one.
    type: Recreate
    {{- else }}
    type: RollingUpdate
    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
    {{- end }}
  selector:
    matchLabels:
      {{- toYaml .selector | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "epp.podLabels" (list . .selector) | nindent 8 }}
      annotations:
        # The configuration is read at the start: another one is another pod.
        checksum/config: {{ include "epp.configData" . | sha256sum }}
        {{- if .sidecar }}
        checksum/envoy: {{ include "epp.envoy" . | sha256sum }}
        {{- end }}
        {{- with $epp.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ .name }}
      {{- with .router.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      terminationGracePeriodSeconds: {{ $epp.terminationGracePeriodSeconds }}
      securityContext:
        {{- toYaml $epp.podSecurityContext | nindent 8 }}
      {{- with include "epp.podPlacement" $epp | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with include "epp.spread" (list .selector .several $epp.topologySpreadConstraints) }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- if .sidecar }}
      initContainers:
      # Runs beside Envoy: starts before it and ends after it.
      - restartPolicy: Always
        {{- include "epp.container" . | nindent 8 }}
      containers:
      - {{ include "epp.proxyContainer" . | indent 8 | trim }}
      {{- else }}
      containers:
      - {{ include "epp.container" . | indent 8 | trim }}
      {{- end }}
      volumes:
      - name: config
        configMap: {name: {{ .name }}}
      {{- if .sidecar }}
      - name: eds
        emptyDir: {}
      {{- include "epp.proxyVolumes" . | nindent 6 }}
      {{- end }}
      {{- with $epp.volumes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end -}}

{{- define "epp.service" -}}
apiVersion: v1
kind: Service
{{ include "epp.metadata" (list . .name) }}
spec:
  selector:
    {{- toYaml .selector | nindent 4 }}
  {{- if and .standalone (not .sidecar) }}
  # Envoy looks up every picker, instead of keeping all its calls on one connection to one of them.
  clusterIP: None
  {{- end }}
  ports:
  {{- if not .sidecar }}
  - {name: grpc-ext-proc, port: {{ .router.epp.extProcPort }}, targetPort: grpc, appProtocol: kubernetes.io/h2c}
  {{- end }}
  - {name: http-metrics, port: 9090, targetPort: metrics}
  {{- if or .sidecar (not .standalone) }}
  {{- with .router.extraServicePorts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- end }}
{{- end -}}
