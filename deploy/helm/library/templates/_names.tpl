{{- define "epp.metadata" -}}
{{- /* Of (list scope name): labels and name of an object. The namespace is left to whoever applies it. */ -}}
{{- $scope := index . 0 -}}
metadata:
  name: {{ index . 1 }}
  labels:
    {{- toYaml $scope.labels | nindent 4 }}
{{- end -}}

{{/* Of (list scope selector). Nothing that changes with the chart's version: another label is another pod. */}}
{{- define "epp.podLabels" -}}
{{- merge (deepCopy (index . 1)) (pick (index . 0).labels "app.kubernetes.io/name" "app.kubernetes.io/instance") | toYaml -}}
{{- end -}}

{{- define "epp.image" -}}
{{- $image := .router.epp.image -}}
{{- with $image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $image.repository }}:{{ $image.tag | default .version }}
{{- end -}}

{{- define "epp.poolGroup" -}}
{{- (splitList "/" .router.inferencePool.apiVersion) | first -}}
{{- end -}}

{{- define "epp.readerSecret" -}}
{{- .router.monitoring.prometheus.auth.secretName | default (printf "%s-metrics-reader" .name) -}}
{{- end -}}

{{- define "epp.proxyName" -}}
{{- trimSuffix "-epp" .name }}-proxy
{{- end -}}

{{- define "epp.serversName" -}}
{{- trimSuffix "-epp" .name }}-servers
{{- end -}}

{{/* Where Envoy listens: the number of the Service port called http. Empty where there is none. */}}
{{- define "epp.proxyPort" -}}
{{- range .router.extraServicePorts -}}
{{- if eq .name "http" }}{{ with .targetPort | default .port }}{{ if not (kindIs "string" .) }}{{ . }}{{ end }}{{ end }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* Of (list selector several own): own, or else over nodes and zones where there is more than one pod. */}}
{{- define "epp.spread" -}}
{{- $selector := index . 0 -}}
{{- with index . 2 -}}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- else -}}
{{- if index . 1 -}}
topologySpreadConstraints:
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- maxSkew: 1
  topologyKey: {{ . }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- toYaml $selector | nindent 6 }}
{{- end }}
{{- end -}}
{{- end -}}
{{- end -}}
