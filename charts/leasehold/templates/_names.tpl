{{/* Names, labels and references that several templates share. */}}

{{- define "leasehold.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains "leasehold" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-leasehold" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The namespace in which the provider operator checks whether the cluster admits pods of leases. */}}
{{- define "leasehold.checksNamespace" -}}
{{- printf "lease-checks-%s" (include "leasehold.fullname" .) -}}
{{- end -}}

{{/* Immutable labels by which pods are selected: (list $ "market") */}}
{{- define "leasehold.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: leasehold
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* All labels of an object: (list $ "market") */}}
{{- define "leasehold.labels" -}}
{{- $root := index . 0 -}}
{{ include "leasehold.selector" . }}
app.kubernetes.io/part-of: leasehold
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{/* The reference of an image: (list $ "operator") */}}
{{- define "leasehold.image" -}}
{{- $root := index . 0 -}}
{{- printf "%s/%s:%s" $root.Values.image.registry (index . 1) $root.Values.image.tag -}}
{{- end -}}

{{/* Whether this release is the market and also a provider of it. */}}
{{- define "leasehold.oneCluster" -}}
{{- if and .Values.market.enabled .Values.provider.enabled (not .Values.provider.market.kubeconfigSecretName) -}}true{{- end -}}
{{- end -}}

{{/* Names of the Secrets with RPC URLs, as a JSON list. */}}
{{- define "leasehold.rpcSecrets" -}}
{{- $names := .Values.rpcSecretNames -}}
{{- range .Values.paymentNetworks -}}
{{- if .rpcSecretName -}}{{- $names = append $names .rpcSecretName -}}{{- end -}}
{{- if .secondRpcSecretName -}}{{- $names = append $names .secondRpcSecretName -}}{{- end -}}
{{- end -}}
{{- $names | uniq | toJson -}}
{{- end -}}

{{/* The providers of the market with all defaults, as JSON: {providers: […]}. */}}
{{- define "leasehold.providers" -}}
{{- $providers := list -}}
{{- if .Values.market.enabled -}}
{{- range .Values.market.providers -}}
{{- $own := dict "kind" "ServiceAccount" "name" "provider" "namespace" (printf "provider-%s" .name) -}}
{{- $providers = append $providers (merge (dict "subject" (.subject | default $own) "account" (not .subject)) .) -}}
{{- end -}}
{{- if include "leasehold.oneCluster" . -}}
{{- $self := dict
      "name" (required "provider.name: the name of the GpuProvider, such as rhine-west" .Values.provider.name)
      "payee" (required "provider.payee: the address that is paid, 0x and 40 hexadecimal digits" .Values.provider.payee)
      "controller" (required "provider.controller: the address of the key in provider.controllerKey; `cast wallet address` prints it" .Values.provider.controller)
      "region" .Values.provider.region
      "subject" (dict "kind" "ServiceAccount" "name" (printf "%s-provider" (include "leasehold.fullname" .)) "namespace" .Release.Namespace)
      "account" false -}}
{{- range $providers -}}
{{- if eq .name $self.name -}}{{- fail (printf "market.providers: %s is provider.name of this release and is added by itself" .name) -}}{{- end -}}
{{- end -}}
{{- $providers = append $providers $self -}}
{{- end -}}
{{- end -}}
{{- dict "providers" $providers | toJson -}}
{{- end -}}
