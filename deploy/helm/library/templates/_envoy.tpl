{{/*
Envoy's configuration: deploy/envoy/lean.yaml with other addresses, and a port for probes and statistics. Of what lean.yaml
says nothing is left out.
*/}}
{{- define "epp.envoy" -}}
{{- $envoy := get .files "lean.yaml" | fromYaml -}}
{{- $static := $envoy.static_resources -}}
{{- $listener := first $static.listeners -}}
{{- $_ := set $listener.address.socket_address "port_value" (include "epp.proxyPort" . | int) -}}
{{- $hcm := (first (first $listener.filter_chains).filters).typed_config -}}
{{- range $hcm.http_filters -}}
{{- if eq .name "envoy.filters.http.ext_proc" }}{{ $_ := set .typed_config "failure_mode_allow" $.router.proxy.failOpen }}{{ end -}}
{{- end -}}
{{- range $static.clusters -}}
{{- if eq .name "picker" }}{{ $_ := include "epp.envoyPicker" (list $ .) | fromYaml | mergeOverwrite . }}
{{- else if $.sidecar }}{{ $_ := set .eds_cluster_config.eds_config "path_config_source" (dict "path" "/eds/servers.yaml" "watched_directory" (dict "path" "/eds")) }}
{{- else }}{{ $_ := unset . "eds_cluster_config" }}{{ $_ := include "epp.envoyServers" $ | fromYaml | mergeOverwrite . }}
{{- end -}}
{{- end -}}
{{- $_ := set $static "listeners" (append $static.listeners (include "epp.envoyReady" . | fromYaml)) -}}
{{- $_ := set $static "clusters" (append $static.clusters (include "epp.envoyAdmin" . | fromYaml)) -}}
{{- toYaml $envoy -}}
{{- end -}}

{{/* Of (list scope cluster): where the picker is, and over TLS where that is not the same pod. */}}
{{- define "epp.envoyPicker" -}}
{{- $scope := index . 0 -}}
{{- $port := $scope.router.epp.extProcPort -}}
{{- $health := index (index . 1).health_checks 0 -}}
{{- if $scope.sidecar -}}
load_assignment:
  cluster_name: picker
  endpoints:
  - lb_endpoints:
    - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: {{ $port }}}}}
{{- else -}}
type: STRICT_DNS
dns_refresh_rate: 2s
load_assignment:
  cluster_name: picker
  endpoints:
  - lb_endpoints:
    - endpoint: {address: {socket_address: {address: {{ $scope.name }}.{{ $scope.namespace }}.svc.{{ $scope.router.clusterDomain }}, port_value: {{ $port }}}}}
{{- if ne (toString (get $scope.router.epp.flags "secure-serving")) "false" }}
# Without a look at the certificate, which the picker makes anew at each start.
transport_socket:
  name: envoy.transport_sockets.tls
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
    common_tls_context:
      tls_params: {tls_minimum_protocol_version: TLSv1_2, tls_maximum_protocol_version: TLSv1_3}
      alpn_protocols: [h2]
health_checks:
- {{- mergeOverwrite (deepCopy $health) (dict "tls_options" (dict "alpn_protocols" (list "h2"))) | toYaml | nindent 2 }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* The model servers as the cluster's DNS tells them, each port of a pod an endpoint. */}}
{{- define "epp.envoyServers" -}}
type: STRICT_DNS
dns_refresh_rate: 2s
load_assignment:
  cluster_name: servers
  endpoints:
  - lb_endpoints:
    {{- range .router.modelServers.targetPorts }}
    - endpoint: {address: {socket_address: {address: {{ include "epp.serversName" $ }}.{{ $.namespace }}.svc.{{ $.router.clusterDomain }}, port_value: {{ .number }}}}}
    {{- end }}
{{- end -}}

{{/* Probes and statistics from outside the pod; the rest of the admin interface stays on the loopback interface. */}}
{{- define "epp.envoyReady" -}}
name: ready
address: {socket_address: {address: 0.0.0.0, port_value: 19001}}
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: ready
      route_config:
        virtual_hosts:
        - name: ready
          domains: ["*"]
          routes:
          - match: {path: /ready}
            route: {cluster: admin}
          - match: {path: /stats/prometheus}
            route: {cluster: admin}
      http_filters:
      - name: envoy.filters.http.router
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
{{- end -}}

{{- define "epp.envoyAdmin" -}}
name: admin
type: STATIC
connect_timeout: 0.25s
load_assignment:
  cluster_name: admin
  endpoints:
  - lb_endpoints:
    - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 19000}}}
{{- end -}}
