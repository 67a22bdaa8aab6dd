{{/* What an operator may do in its own namespace: lead, and read the RPC URLs it was given:
     (list $ "market" "name-of-its-leader-lease") */}}
{{- define "leasehold.ownNamespace" -}}
{{- $root := index . 0 -}}
{{- $name := printf "%s-%s" (include "leasehold.fullname" $root) (index . 1) -}}
{{- $secrets := include "leasehold.rpcSecrets" $root | fromJsonArray -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "leasehold.labels" . | nindent 4 }}
rules:
  # Leader election. What is created can't be confined by name.
  - apiGroups: [coordination.k8s.io]
    resources: [leases]
    verbs: [create]
  - apiGroups: [coordination.k8s.io]
    resources: [leases]
    resourceNames: [{{ index . 2 }}]
    verbs: [get, patch, update]
  {{- if $secrets }}
  # URLs of the chains' RPC endpoints.
  - apiGroups: [""]
    resources: [secrets]
    resourceNames: {{ $secrets | toJson }}
    verbs: [get]
  {{- end }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "leasehold.labels" . | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ $name }}}
subjects:
  - {kind: ServiceAccount, name: {{ $name }}, namespace: {{ $root.Release.Namespace }}}
{{- end -}}
