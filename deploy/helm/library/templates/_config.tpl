{{/* The picker's configuration files, by name, as JSON. */}}
{{- define "epp.configData" -}}
{{- $epp := .router.epp -}}
{{- $data := omit .files "lean.yaml" -}}
{{- $engine := .router.modelServers.type -}}
{{- if or (ne $engine "vllm") $epp.parsers -}}
{{- $default := get $data "default-plugins.yaml" | fromYaml -}}
{{- $plugins := $default.plugins -}}
{{- if ne $engine "vllm" -}}
{{- $plugins = append $plugins (dict "type" "core-metrics-extractor" "parameters" (dict "defaultEngine" $engine)) -}}
{{- end -}}
{{- $parsers := list -}}
{{- range $epp.parsers -}}
{{- $plugins = append $plugins (dict "type" .) -}}
{{- $parsers = append $parsers (dict "pluginRef" .) -}}
{{- end -}}
{{- $_ := set $default "plugins" $plugins -}}
{{- with $parsers }}{{ $_ := set $default "requestHandler" (dict "parsers" .) }}{{ end -}}
{{- $_ := set $data "default-plugins.yaml" (toYaml $default) -}}
{{- end -}}
{{- with $epp.pluginsConfig }}{{ $_ := set $data $epp.pluginsConfigFile (toYaml .) }}{{ end -}}
{{- mergeOverwrite $data $epp.pluginsCustomConfig | toJson -}}
{{- end -}}

{{- define "epp.config" -}}
apiVersion: v1
kind: ConfigMap
{{ include "epp.metadata" (list . .name) }}
data:
{{- range $name, $text := include "epp.configData" . | fromJson }}
  {{ $name }}: |
    {{- $text | trim | nindent 4 }}
{{- end }}
{{- end -}}
