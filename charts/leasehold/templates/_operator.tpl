{{/* The Deployment of an operator, the gateway or the connector: (dict "root" $ "role" "market" "values" .Values.market
     "args" (list …) "volumes" (list …)). A volume is {name, path, secret} or, for a token of the pod's ServiceAccount,
     {name, path, audience}. Optional: "image", by default `operator`, which has a subcommand for each role; "ports",
     {name, containerPort}. */}}
{{- define "leasehold.operator" -}}
{{- $root := .root -}}
{{- $name := printf "%s-%s" (include "leasehold.fullname" $root) .role -}}
{{- $image := .image | default "operator" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "leasehold.labels" (list $root .role) | nindent 4 }}
spec:
  replicas: {{ .values.replicas }}
  selector:
    matchLabels:
      {{- include "leasehold.selector" (list $root .role) | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "leasehold.labels" (list $root .role) | nindent 8 }}
      annotations:
        kubectl.kubernetes.io/default-container: {{ $image }}
        {{- with .values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ $name }}
      automountServiceAccountToken: true
      {{- with $root.Values.image.pullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "leasehold.restrictedPod" $root | nindent 8 }}
      # Time to finish running reconciles and to release leadership, or for streams to end.
      terminationGracePeriodSeconds: 30
      containers:
        - name: {{ $image }}
          image: {{ include "leasehold.image" (list $root $image) }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args:
            {{- if eq $image "operator" }}
            - {{ .role }}
            {{- end }}
            {{- range .args }}
            - {{ . | quote }}
            {{- end }}
            - --admin-address=0.0.0.0:8080
            - --log-format={{ $root.Values.log.format }}
            - {{ printf "--log-filter=%s" $root.Values.log.filter | quote }}
            {{- with $root.Values.otlp.endpoint }}
            - {{ printf "--otlp-endpoint=%s" . | quote }}
            {{- end }}
            {{- range .values.extraArgs }}
            - {{ . | quote }}
            {{- end }}
          env:
            {{- include "leasehold.podEnvironment" $root | nindent 12 }}
          ports:
            - {name: admin, containerPort: 8080}
            {{- range .ports }}
            - {{ . | toJson }}
            {{- end }}
          livenessProbe:
            httpGet: {path: /healthz, port: admin}
            initialDelaySeconds: 10
            periodSeconds: 10
            timeoutSeconds: 5
          readinessProbe:
            httpGet: {path: /readyz, port: admin}
            periodSeconds: 2
            timeoutSeconds: 2
          resources:
            {{- toYaml .values.resources | nindent 12 }}
          securityContext:
            {{- include "leasehold.restrictedContainer" $root | nindent 12 }}
          {{- with .volumes }}
          volumeMounts:
            {{- range . }}
            - {name: {{ .name }}, mountPath: {{ .path }}, readOnly: true}
            {{- end }}
          {{- end }}
      {{- with .volumes }}
      volumes:
        {{- range . }}
        - name: {{ .name }}
          {{- if .audience }}
          projected:
            sources:
              - serviceAccountToken: {audience: {{ .audience }}, path: token, expirationSeconds: 3600}
          {{- else }}
          secret:
            secretName: {{ .secret }}
            # Readable only for the group of the operator.
            defaultMode: 0440
          {{- end }}
        {{- end }}
      {{- end }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "leasehold.selector" (list $root .role) | nindent 14 }}
      {{- with .values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .values.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end -}}

{{- define "leasehold.podEnvironment" -}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_SERVICE_ACCOUNT
  valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}
{{- end -}}

{{/* Pod security standard `restricted`, with a group for the files of Secrets. */}}
{{- define "leasehold.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "leasehold.restrictedContainer" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* A pod that runs the operator binary once: (dict "root" $ "account" "…" "args" (list …)
     "environment" (dict NAME value) "volumes" (list …)).
     A volume is {name, path, secret} or {name, path, configMap}. */}}
{{- define "leasehold.once" -}}
{{- $root := .root -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: true
restartPolicy: Never
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "leasehold.restrictedPod" $root | nindent 2 }}
containers:
  - name: operator
    image: {{ include "leasehold.image" (list $root "operator") }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    args:
      {{- range .args }}
      - {{ . | quote }}
      {{- end }}
    env:
      {{- include "leasehold.podEnvironment" $root | nindent 6 }}
      {{- range $variable, $value := .environment }}
      - {name: {{ $variable }}, value: {{ $value | quote }}}
      {{- end }}
    # The last lines of the log, which contain the error, become the termination message.
    terminationMessagePolicy: FallbackToLogsOnError
    resources:
      requests: {cpu: 10m, memory: 32Mi}
      limits: {memory: 128Mi}
    securityContext:
      {{- include "leasehold.restrictedContainer" $root | nindent 6 }}
    {{- with .volumes }}
    volumeMounts:
      {{- range . }}
      - {name: {{ .name }}, mountPath: {{ .path }}, readOnly: true}
      {{- end }}
    {{- end }}
{{- with .volumes }}
volumes:
  {{- range . }}
  - name: {{ .name }}
    {{- if .configMap }}
    configMap: {name: {{ .configMap }}}
    {{- else }}
    secret: {secretName: {{ .secret }}, defaultMode: 0440}
    {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Subjects of the checks: the accounts of the operators of this release, and its provider. */}}
{{- define "leasehold.checked" -}}
{{- $environment := dict -}}
{{- if .Values.market.enabled -}}
{{- $environment = set $environment "LEASEHOLD_MARKET_ACCOUNT" (printf "%s:%s-market" .Release.Namespace (include "leasehold.fullname" .)) -}}
{{- end -}}
{{- if .Values.provider.enabled -}}
{{- $environment = set $environment "LEASEHOLD_PROVIDER_ACCOUNT" (printf "%s:%s-provider" .Release.Namespace (include "leasehold.fullname" .)) -}}
{{- $environment = set $environment "LEASEHOLD_PROVIDER_NAME" .Values.provider.name -}}
{{- end -}}
{{- $environment | toJson -}}
{{- end -}}
