{{/*
Everything that the other templates look at, as JSON: the one place that knows the names of earlier charts, and that reads
.Values, .Release, .Chart and .Files. Called with a chart's root.
*/}}
{{- define "epp.scope" -}}
{{- $router := deepCopy .Values.router -}}
{{- $provider := deepCopy (.Values.provider | default (dict "name" "none")) -}}
{{- $route := deepCopy (.Values.httpRoute | default (dict "create" false)) -}}
{{- include "epp.earlierPool" (dict "router" $router "old" (.Values.inferencePool | default dict)) -}}
{{- include "epp.earlierExtension" (dict "router" $router "provider" $provider "old" (.Values.inferenceExtension | default dict)) -}}
{{- with .Values.inferenceObjectives }}{{ $_ := set $router "inferenceObjectives" . }}{{ end -}}
{{- with .Values.istio }}{{ $_ := set $provider "istio" (mergeOverwrite ($provider.istio | default dict) .) }}{{ end -}}
{{- with (.Values.gke | default dict).monitoringSecret }}{{ $_ := set $router.monitoring.prometheus.auth "secretName" .name }}{{ end -}}
{{- with .Values.experimentalHttpRoute }}
{{- $_ := mergeOverwrite $route (omit . "enabled" "baseModel") (dict "create" (.enabled | default false)) }}
{{- end -}}
{{- with ($provider.gke | default dict).autopilot }}{{ $_ := set $router.monitoring.provider.gmp "autopilot" . }}{{ end -}}
{{- if not $router.monitoring.provider.name }}
{{- $_ := set $router.monitoring.provider "name" (ternary "gmp" "prometheusoperator" (eq $provider.name "gke")) }}
{{- end -}}
{{- $name := printf "%s-epp" (.Release.Name | lower | trunc 40 | trimSuffix "-") -}}
{{- $elected := has (toString (get $router.epp.flags "ha-enable-leader-election")) (list "true" "t" "1") -}}
{{- dict
  "name" $name
  "pool" .Release.Name
  "namespace" .Release.Namespace
  "standalone" (eq .Chart.Name "epp-standalone")
  "sidecar" (and $router.proxy.enabled (eq $router.proxy.mode "sidecar"))
  "elected" $elected
  "several" (or (gt (int $router.epp.replicas) 1) $router.epp.autoscaling.enabled)
  "labels" (dict
    "app.kubernetes.io/name" .Chart.Name
    "app.kubernetes.io/instance" .Release.Name
    "app.kubernetes.io/version" .Chart.AppVersion
    "app.kubernetes.io/managed-by" .Release.Service
    "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version))
  "selector" (dict "inferencepool" $name)
  "proxySelector" (dict "epp-proxy" $name)
  "version" .Chart.AppVersion
  "router" $router
  "provider" $provider
  "route" $route
  "files" (dict
    "default-plugins.yaml" (.Files.Get "files/default-plugins.yaml")
    "payload-agnostic.yaml" (.Files.Get "files/payload-agnostic.yaml")
    "lean.yaml" (.Files.Get "files/lean.yaml"))
| toJson -}}
{{- end -}}

{{/* Takes over what is under the earlier name inferencePool. */}}
{{- define "epp.earlierPool" -}}
{{- $servers := .router.modelServers -}}
{{- $pool := .router.inferencePool -}}
{{- with .old.targetPortNumber }}{{ $_ := set $servers "targetPorts" (list (dict "number" .)) }}{{ end -}}
{{- with .old.targetPorts }}{{ $_ := set $servers "targetPorts" . }}{{ end -}}
{{- with .old.modelServerType }}{{ $_ := set $servers "type" . }}{{ end -}}
{{- with .old.modelServerProtocol }}{{ $_ := set $servers "protocol" . }}{{ end -}}
{{- with (.old.modelServers | default dict).matchLabels }}{{ $_ := set $servers "matchLabels" . }}{{ end -}}
{{- with .old.apiVersion }}{{ $_ := set $pool "apiVersion" . }}{{ end -}}
{{- with .old.failureMode }}{{ $_ := set $pool "failureMode" . }}{{ end -}}
{{- with .old.parser }}{{ $_ := set $.router.epp "parsers" (list .) }}{{ end -}}
{{- range $key := list "create" "enabled" }}
{{- if hasKey $.old $key }}{{ $_ := set $pool "create" (get $.old $key) }}{{ end }}
{{- end -}}
{{- end -}}

{{/* Takes over what is under the earlier name inferenceExtension. */}}
{{- define "epp.earlierExtension" -}}
{{- $epp := .router.epp -}}
{{- $same := list "replicas" "extProcPort" "pluginsConfigFile" "pluginsCustomConfig" "affinity" "tolerations" "resources" "extraContainerPorts" "volumes" "volumeMounts" -}}
{{- range $key := $same }}
{{- if hasKey $.old $key }}{{ $_ := set $epp $key (get $.old $key) }}{{ end }}
{{- end -}}
{{- with .old.image -}}
{{- $_ := mergeOverwrite $epp.image (omit . "hub" "name") -}}
{{- with .hub }}{{ $_ := set $epp.image "registry" . }}{{ end -}}
{{- with .name }}{{ $_ := set $epp.image "repository" . }}{{ end -}}
{{- end -}}
{{- with .old.env -}}
{{- $env := . -}}
{{- if kindIs "map" . -}}
{{- $env = list -}}
{{- range $name, $value := . }}{{ $env = append $env (dict "name" $name "value" (toString $value)) }}{{ end -}}
{{- end -}}
{{- $_ := set $epp "env" $env -}}
{{- end -}}
{{- with .old.flags -}}
{{- if kindIs "map" . }}{{ $_ := mergeOverwrite $epp.flags . }}{{ else }}
{{- range . }}{{ $_ := set $epp.flags .name .value }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if .old.enableLeaderElection }}{{ $_ := set $epp.flags "ha-enable-leader-election" true }}{{ end -}}
{{- with .old.extraServicePorts }}{{ $_ := set $.router "extraServicePorts" . }}{{ end -}}
{{- with .old.modelServers -}}
{{- $_ := mergeOverwrite $.router.modelServers (omit . "targetPortNumber") -}}
{{- with .targetPortNumber }}{{ $_ := set $.router.modelServers "targetPorts" (list (dict "number" .)) }}{{ end -}}
{{- end -}}
{{- with .old.inferencePool }}{{ $_ := mergeOverwrite $.router.inferencePool . }}{{ end -}}
{{- with .old.tracing }}{{ $_ := set $.router.tracing "enabled" (.enabled | default false) }}{{ end -}}
{{- with .old.latencyPredictor }}{{ $_ := set $.router.latencyPredictor "enabled" (.enabled | default false) }}{{ end -}}
{{- with .old.monitoring -}}
{{- $monitoring := $.router.monitoring -}}
{{- with .interval }}{{ $_ := set $monitoring "interval" . }}{{ end -}}
{{- with .provider }}{{ $_ := mergeOverwrite $monitoring.provider . }}{{ end -}}
{{- with .prometheus }}{{ $_ := mergeOverwrite $monitoring.prometheus . }}{{ end -}}
{{- with .secret }}{{ $_ := set $monitoring.prometheus.auth "secretName" .name }}{{ end -}}
{{- if (.gke | default dict).enabled -}}
{{- $_ := set $monitoring.prometheus "enabled" true -}}
{{- $_ := set $monitoring.provider "name" "gmp" -}}
{{- end -}}
{{- end -}}
{{- end -}}
