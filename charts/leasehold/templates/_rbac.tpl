{{/* Permissions of an operator in its own namespace: leader election, and reading the Secrets with RPC URLs:
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
  # Leader election. RBAC cannot restrict `create` by name.
  - apiGroups: [coordination.k8s.io]
    resources: [leases]
    verbs: [create]
  - apiGroups: [coordination.k8s.io]
    resources: [leases]
    resourceNames: [{{ index . 2 }}]
    verbs: [get, patch, update]
  {{- if $secrets }}
  # URLs of the RPC endpoints.
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
