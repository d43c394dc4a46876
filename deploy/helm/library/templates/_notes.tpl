{{- define "epp.notes" -}}
{{- $router := .router -}}
{{- $labels := list }}
{{- range $key, $value := $router.modelServers.matchLabels }}{{ $labels = append $labels (printf "%s=%s" $key $value) }}{{ end -}}
{{- $front := ternary .name (include "epp.proxyName" .) .sidecar -}}
{{- $port := include "epp.proxyPort" . -}}
The picker of {{ .pool }} looks for model servers among pods with the labels {{ join "," $labels }}.

1. Are they there, and ready?
     kubectl -n {{ .namespace }} get pods -l {{ join "," $labels }}

2. Is the picker ready? It is once it has seen the pods.
     kubectl -n {{ .namespace }} rollout status deployment/{{ .name }}
     kubectl -n {{ .namespace }} logs deployment/{{ .name }} -c epp

{{ if .standalone -}}
3. Ask, and take a model that your servers have:
     kubectl -n {{ .namespace }} port-forward service/{{ $front }} {{ $port }}
     curl http://127.0.0.1:{{ $port }}/v1/chat/completions -H 'content-type: application/json' \
       -d '{"model": "my-model", "messages": [{"role": "user", "content": "Hello"}]}'
{{- else if .route.create -}}
3. Does the gateway take the route?
     kubectl -n {{ .namespace }} describe httproute {{ .pool }}
{{- else -}}
3. Lead a route of your gateway to it, with this as backendRef of an HTTPRoute:
     {group: {{ include "epp.poolGroup" . }}, kind: InferencePool, name: {{ .pool }}}
   With --set httpRoute.create=true --set httpRoute.inferenceGatewayName=NAME the chart makes one.
{{- end }}

4. How do requests fare, and what does it know of each server?
     kubectl -n {{ .namespace }} port-forward deployment/{{ .name }} 9090
{{- if $router.monitoring.prometheus.auth.enabled }}
     curl http://127.0.0.1:9090/metrics -H "authorization: Bearer $TOKEN"
     curl http://127.0.0.1:9090/debug/endpoints -H "authorization: Bearer $TOKEN"
   each with the token of an account that may get that path (nonResourceURLs of a ClusterRole).
{{- if $router.monitoring.prometheus.enabled }} For /metrics there is one:
     TOKEN=$(kubectl -n {{ .namespace }} get secret {{ include "epp.readerSecret" . }} -o jsonpath='{.data.token}' | base64 -d)
{{- else }} --set
   router.monitoring.prometheus.enabled=true makes one for /metrics.
{{- end }}
{{- else }}
     curl http://127.0.0.1:9090/metrics
     curl http://127.0.0.1:9090/debug/endpoints
{{- end }}
{{- if not $router.epp.image.registry }}

The image is {{ include "epp.image" . }}, which no registry has for you: build it from the Dockerfile, push it to yours, and say
--set router.epp.image.registry=REGISTRY.
{{- end }}
{{- if and .several (not .elected) }}

Each of several pickers knows the prefixes of the requests that came to it: a prompt's next turn may meet another one.
{{- end }}
{{- if $router.tracing.enabled }}

router.tracing.enabled: no spans are made yet; the picker says so in its log.
{{- end }}
{{- end -}}
