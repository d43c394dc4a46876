{{/* Ends the rendering with a sentence that says what to do, where values fit the schema and yet cannot work together. */}}
{{- define "epp.refusals" -}}
{{- $router := .router -}}
{{- $epp := $router.epp -}}
{{- if not $router.modelServers.matchLabels -}}
{{- fail "router.modelServers.matchLabels is missing: which labels do the model servers' pods have? For example --set router.modelServers.matchLabels.app=my-model" -}}
{{- end -}}
{{- if and $router.inferenceObjectives (not $router.inferencePool.create) -}}
{{- fail "router.inferenceObjectives needs router.inferencePool.create=true: an objective names a pool" -}}
{{- end -}}
{{- if ne $router.modelServers.protocol "http" -}}
{{- fail (printf "router.modelServers.protocol: %q is not supported, since gRPC bodies are not read. To route them by load alone set router.epp.pluginsConfigFile=payload-agnostic.yaml, leave protocol at http, and set appProtocol on an InferencePool of your own" $router.modelServers.protocol) -}}
{{- end -}}
{{- if and (not $epp.pluginsConfig) (not (hasKey .files $epp.pluginsConfigFile)) (not (hasKey $epp.pluginsCustomConfig $epp.pluginsConfigFile)) -}}
{{- fail (printf "router.epp.pluginsConfigFile: there is no %s; give it in router.epp.pluginsConfig or router.epp.pluginsCustomConfig, or take one of default-plugins.yaml, payload-agnostic.yaml" $epp.pluginsConfigFile) -}}
{{- end -}}
{{- if and $epp.pluginsConfig (hasKey $epp.pluginsCustomConfig $epp.pluginsConfigFile) -}}
{{- fail (printf "router.epp.pluginsConfig and router.epp.pluginsCustomConfig both define %s" $epp.pluginsConfigFile) -}}
{{- end -}}
{{- if and $epp.parsers (or $epp.pluginsConfig (ne $epp.pluginsConfigFile "default-plugins.yaml")) -}}
{{- fail (printf "router.epp.parsers: name them in %s, under requestHandler.parsers; the chart adds them to its default-plugins.yaml only" $epp.pluginsConfigFile) -}}
{{- end -}}
{{- $own := dict "grpc-port" "router.epp.extProcPort" "grpc-health-port" "router.epp.grpcHealthPort" "config-file" "router.epp.pluginsConfigFile" "drain-timeout" "router.epp.terminationGracePeriodSeconds" "pool-name" "the release's name" "envoy-eds-file" "router.proxy.mode" -}}
{{- range $flag, $instead := $own -}}
{{- if hasKey $epp.flags $flag }}{{ fail (printf "router.epp.flags.%s: the chart sets this flag, by %s" $flag $instead) }}{{ end -}}
{{- end -}}
{{- if hasKey $epp.flags "metrics-port" -}}
{{- fail "router.epp.flags.metrics-port: it is 9090, which the Service, monitors and policies name" -}}
{{- end -}}
{{- if and .elected $epp.autoscaling.enabled -}}
{{- fail "router.epp.autoscaling needs pickers that all pick: leave out the flag ha-enable-leader-election" -}}
{{- end -}}
{{- if and .elected .sidecar -}}
{{- fail "the flag ha-enable-leader-election and router.proxy.mode=sidecar exclude each other: an Envoy would ask a picker that only waits. Take router.proxy.mode=service, or leave the flag out" -}}
{{- end -}}
{{- if $router.tokenizer.enabled -}}
{{- fail "router.tokenizer.enabled: this picker fingerprints prompts by their bytes and asks no tokenizer; leave it out" -}}
{{- end -}}
{{- if $router.latencyPredictor.enabled -}}
{{- fail "router.latencyPredictor.enabled: this picker asks no latency predictor; leave it out" -}}
{{- end -}}
{{- if ((.provider.gke | default dict).preferredBackends | default dict).enabled -}}
{{- fail "provider.gke.preferredBackends.enabled: there are no standby pickers to prefer others to, since all replicas pick; set router.epp.replicas instead" -}}
{{- end -}}
{{- if and $router.proxy.enabled (not .standalone) -}}
{{- fail "router.proxy.enabled: this chart stands behind a gateway; for an Envoy of its own install the chart epp-standalone" -}}
{{- end -}}
{{- if and .standalone (not $router.proxy.enabled) -}}
{{- fail "router.proxy.enabled=false: the chart epp-standalone is the one with a proxy; behind a gateway install the chart epp" -}}
{{- end -}}
{{- if ne $router.proxy.proxyType "envoy" -}}
{{- fail (printf "router.proxy.proxyType: this chart brings an Envoy; install the chart epp behind %s instead (deploy/gateways)" $router.proxy.proxyType) -}}
{{- end -}}
{{- if and .sidecar (gt (int $router.proxy.drainSeconds) (sub (int $epp.terminationGracePeriodSeconds) 20)) -}}
{{- fail (printf "router.proxy.drainSeconds=%v needs router.epp.terminationGracePeriodSeconds of at least 20 more" $router.proxy.drainSeconds) -}}
{{- end -}}
{{- if and .standalone (not (include "epp.proxyPort" .)) -}}
{{- fail "router.extraServicePorts needs a port called http with a number as its targetPort: Envoy listens there" -}}
{{- end -}}
{{- end -}}
