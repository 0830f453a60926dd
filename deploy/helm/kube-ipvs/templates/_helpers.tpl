{{/* An image with or without iptables: (list . "-iptables"). */}}
{{- define "kube-ipvs.image" -}}
{{- $root := index . 0 -}}
{{ $root.Values.image.repository }}:{{ default (printf "v%s%s" $root.Chart.AppVersion (index . 1)) $root.Values.image.tag }}
{{- end }}

{{/* Where the configuration is in the container. */}}
{{- define "kube-ipvs.folder" -}}
/var/lib/{{ ternary "kube-proxy" "kube-ipvs" .Values.kubeProxyConfigMap }}
{{- end }}

{{/* Arguments of every container. */}}
{{- define "kube-ipvs.args" -}}
- --config={{ include "kube-ipvs.folder" . }}/config.conf
- --hostname-override=$(NODE_NAME)
{{- if .Values.leastPrivilege }}
- --fallback=none
{{- end }}
{{- with .Values.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Environment of every container. */}}
{{- define "kube-ipvs.env" -}}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- if not .Values.kubeProxyConfigMap }}
- name: KUBERNETES_SERVICE_HOST
  valueFrom:
    configMapKeyRef:
      name: kube-ipvs-api-server
      key: host
- name: KUBERNETES_SERVICE_PORT
  valueFrom:
    configMapKeyRef:
      name: kube-ipvs-api-server
      key: port
{{- end }}
{{- end }}

{{/* Mounts of every container. */}}
{{- define "kube-ipvs.mounts" -}}
- name: config
  mountPath: {{ include "kube-ipvs.folder" . }}
  readOnly: true
- name: run
  mountPath: /run/kube-ipvs
- name: xtables-lock
  mountPath: /run/xtables.lock
{{- end }}
