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

{{/* Whether the gateway is part of this release. */}}
{{- define "leasehold.hasGateway" -}}
{{- if and .Values.market.enabled .Values.gateway.domain -}}true{{- end -}}
{{- end -}}

{{/* Addresses of the gateway to which the connector connects, as a JSON list: those of the values, or in the market's own
     cluster those of the replicas. */}}
{{- define "leasehold.gateways" -}}
{{- $gateways := .Values.connector.gateways -}}
{{- if and (not $gateways) (include "leasehold.oneCluster" .) (include "leasehold.hasGateway" .) -}}
{{- $gateways = list (include "leasehold.gatewayReplicas" .) -}}
{{- end -}}
{{- $gateways | toJson -}}
{{- end -}}

{{/* Address that resolves to every replica of the gateway. */}}
{{- define "leasehold.gatewayReplicas" -}}
{{- printf "%s-gateway-replicas.%s.svc:8443" (include "leasehold.fullname" .) .Release.Namespace -}}
{{- end -}}

{{/* Whether the connector is part of this release. */}}
{{- define "leasehold.hasConnector" -}}
{{- if and .Values.provider.enabled (include "leasehold.gateways" . | fromJsonArray) -}}true{{- end -}}
{{- end -}}

{{/* Values of the Deployments of this release by role, as JSON. */}}
{{- define "leasehold.deployments" -}}
{{- $deployments := dict -}}
{{- if .Values.market.enabled -}}{{- $deployments = set $deployments "market" .Values.market -}}{{- end -}}
{{- if .Values.provider.enabled -}}{{- $deployments = set $deployments "provider" .Values.provider -}}{{- end -}}
{{- if include "leasehold.hasGateway" . -}}{{- $deployments = set $deployments "gateway" .Values.gateway -}}{{- end -}}
{{- if include "leasehold.hasConnector" . -}}{{- $deployments = set $deployments "connector" .Values.connector -}}{{- end -}}
{{- $deployments | toJson -}}
{{- end -}}

{{/* The same with the agent. */}}
{{- define "leasehold.workloads" -}}
{{- $workloads := include "leasehold.deployments" . | fromJson -}}
{{- if .Values.agent.enabled -}}{{- $workloads = set $workloads "agent" .Values.agent -}}{{- end -}}
{{- $workloads | toJson -}}
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
{{- $connector := dict "kind" "ServiceAccount" "name" "connector" "namespace" (printf "provider-%s" .name) -}}
{{- $providers = append $providers (merge (dict "subject" (.subject | default $own) "connector" $connector "connectorAccount" true "account" (not .subject)) .) -}}
{{- end -}}
{{- if include "leasehold.oneCluster" . -}}
{{- $self := dict
      "name" (required "provider.name: the name of the GpuProvider, such as rhine-west" .Values.provider.name)
      "payee" (required "provider.payee: the address that is paid, 0x and 40 hexadecimal digits" .Values.provider.payee)
      "controller" (required "provider.controller: the address of the key in provider.controllerKey; `cast wallet address` prints it" .Values.provider.controller)
      "region" .Values.provider.region
      "subject" (dict "kind" "ServiceAccount" "name" (printf "%s-provider" (include "leasehold.fullname" .)) "namespace" .Release.Namespace)
      "connector" (dict "kind" "ServiceAccount" "name" (printf "%s-connector" (include "leasehold.fullname" .)) "namespace" .Release.Namespace)
      "connectorAccount" false
      "account" false -}}
{{- range $providers -}}
{{- if eq .name $self.name -}}{{- fail (printf "market.providers: %s is provider.name of this release and is added by itself" .name) -}}{{- end -}}
{{- end -}}
{{- $providers = append $providers $self -}}
{{- end -}}
{{- end -}}
{{- dict "providers" $providers | toJson -}}
{{- end -}}
