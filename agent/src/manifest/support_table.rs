//! The table of [`support`](super::support).

use super::support::Field;
use super::support::Support::{Applied, AppliedPart, AppliedWhole, NoEffect, Only, Refused};

const SET_BY_NODE: &str = "the node sets it";
const NO_SCHEDULER: &str =
    "a pod that is given to this node runs on it; give it to the nodes that it is meant for";
const NO_WINDOWS: &str = "this node runs Linux";
const NO_RESOURCE_CLAIMS: &str = "there is no dynamic resource allocation";

const fn f(path: &'static str, support: super::support::Support) -> Field {
    Field { path, support }
}

/// All fields of a Pod, in the order of the documentation.
pub(super) const FIELDS: &[Field] = &[
    f("apiVersion", Applied),
    f("kind", Applied),
    f("metadata", Applied),
    f("metadata.name", Applied),
    f("metadata.namespace", Applied),
    f("metadata.labels", AppliedWhole),
    f("metadata.annotations", AppliedWhole),
    f(
        "metadata.generateName",
        Refused("a pod needs a name of its own"),
    ),
    f("metadata.uid", NoEffect(SET_BY_NODE)),
    f("metadata.resourceVersion", NoEffect(SET_BY_NODE)),
    f("metadata.generation", NoEffect(SET_BY_NODE)),
    f("metadata.creationTimestamp", NoEffect(SET_BY_NODE)),
    f("metadata.deletionTimestamp", NoEffect(SET_BY_NODE)),
    f("metadata.deletionGracePeriodSeconds", NoEffect(SET_BY_NODE)),
    f(
        "metadata.managedFields",
        NoEffect("a record of who wrote what"),
    ),
    f(
        "metadata.selfLink",
        NoEffect("a record of where it was read"),
    ),
    f(
        "metadata.ownerReferences",
        NoEffect("a pod lives as long as its manifest"),
    ),
    f(
        "metadata.finalizers",
        Refused("there is no controller that would remove them"),
    ),
    f("status", NoEffect("the node computes it")),
    f("spec", Applied),
    f("spec.activeDeadlineSeconds", Applied),
    f("spec.affinity", Refused(NO_SCHEDULER)),
    f(
        "spec.automountServiceAccountToken",
        Only(&["false"], "there are no service account tokens to mount"),
    ),
    f("spec.containers", Applied),
    f("spec.containers[].args", Applied),
    f("spec.containers[].command", Applied),
    f("spec.containers[].env", Applied),
    f("spec.containers[].env[].name", Applied),
    f("spec.containers[].env[].value", Applied),
    f("spec.containers[].env[].valueFrom", Applied),
    f(
        "spec.containers[].env[].valueFrom.configMapKeyRef",
        AppliedWhole,
    ),
    f(
        "spec.containers[].env[].valueFrom.secretKeyRef",
        AppliedWhole,
    ),
    f("spec.containers[].env[].valueFrom.fieldRef", AppliedWhole),
    f(
        "spec.containers[].env[].valueFrom.resourceFieldRef",
        AppliedWhole,
    ),
    f(
        "spec.containers[].env[].valueFrom.fileKeyRef",
        Refused("use a ConfigMap or a Secret"),
    ),
    f("spec.containers[].envFrom", Applied),
    f("spec.containers[].envFrom[].configMapRef", AppliedWhole),
    f("spec.containers[].envFrom[].secretRef", AppliedWhole),
    f("spec.containers[].envFrom[].prefix", Applied),
    f("spec.containers[].image", Applied),
    f("spec.containers[].imagePullPolicy", Applied),
    f("spec.containers[].lifecycle", Applied),
    f("spec.containers[].lifecycle.preStop", Applied),
    f("spec.containers[].lifecycle.preStop.exec", AppliedWhole),
    f("spec.containers[].lifecycle.preStop.httpGet", AppliedWhole),
    f("spec.containers[].lifecycle.preStop.sleep", AppliedWhole),
    f(
        "spec.containers[].lifecycle.preStop.tcpSocket",
        Refused("Kubernetes does not run it either; use exec, httpGet or sleep"),
    ),
    f("spec.containers[].lifecycle.stopSignal", Applied),
    f("spec.containers[].livenessProbe", Applied),
    f("spec.containers[].livenessProbe.exec", AppliedWhole),
    f("spec.containers[].livenessProbe.httpGet", AppliedWhole),
    f("spec.containers[].livenessProbe.tcpSocket", AppliedWhole),
    f("spec.containers[].livenessProbe.grpc", AppliedWhole),
    f(
        "spec.containers[].livenessProbe.initialDelaySeconds",
        Applied,
    ),
    f("spec.containers[].livenessProbe.periodSeconds", Applied),
    f("spec.containers[].livenessProbe.timeoutSeconds", Applied),
    f("spec.containers[].livenessProbe.successThreshold", Applied),
    f("spec.containers[].livenessProbe.failureThreshold", Applied),
    f(
        "spec.containers[].livenessProbe.terminationGracePeriodSeconds",
        Applied,
    ),
    f("spec.containers[].name", Applied),
    f("spec.containers[].ports", Applied),
    f("spec.containers[].ports[].containerPort", Applied),
    f("spec.containers[].ports[].hostIP", Applied),
    f("spec.containers[].ports[].hostPort", Applied),
    f("spec.containers[].ports[].name", Applied),
    f("spec.containers[].ports[].protocol", Applied),
    f("spec.containers[].resizePolicy", AppliedWhole),
    f("spec.containers[].resources", Applied),
    f("spec.containers[].resources.limits", AppliedWhole),
    f("spec.containers[].resources.requests", AppliedWhole),
    f(
        "spec.containers[].resources.claims",
        Refused(NO_RESOURCE_CLAIMS),
    ),
    f("spec.containers[].restartPolicy", Applied),
    f(
        "spec.containers[].restartPolicyRules",
        Refused("only the policy itself is applied"),
    ),
    f("spec.containers[].securityContext", Applied),
    f(
        "spec.containers[].securityContext.allowPrivilegeEscalation",
        Applied,
    ),
    f(
        "spec.containers[].securityContext.appArmorProfile",
        AppliedWhole,
    ),
    f(
        "spec.containers[].securityContext.capabilities",
        AppliedWhole,
    ),
    f("spec.containers[].securityContext.privileged", Applied),
    f("spec.containers[].securityContext.procMount", Applied),
    f(
        "spec.containers[].securityContext.readOnlyRootFilesystem",
        Applied,
    ),
    f("spec.containers[].securityContext.runAsGroup", Applied),
    f("spec.containers[].securityContext.runAsNonRoot", Applied),
    f("spec.containers[].securityContext.runAsUser", Applied),
    f(
        "spec.containers[].securityContext.seLinuxOptions",
        Refused("SELinux labels are not set"),
    ),
    f(
        "spec.containers[].securityContext.seccompProfile",
        AppliedWhole,
    ),
    f(
        "spec.containers[].securityContext.windowsOptions",
        Refused(NO_WINDOWS),
    ),
    f("spec.containers[].stdin", Applied),
    f("spec.containers[].stdinOnce", Applied),
    f("spec.containers[].terminationMessagePath", Applied),
    f("spec.containers[].terminationMessagePolicy", Applied),
    f("spec.containers[].tty", Applied),
    f(
        "spec.containers[].volumeDevices",
        Refused("there are no block volumes; use a hostPath volume of type BlockDevice"),
    ),
    f("spec.containers[].volumeMounts", Applied),
    f("spec.containers[].volumeMounts[].mountPath", Applied),
    f("spec.containers[].volumeMounts[].mountPropagation", Applied),
    f("spec.containers[].volumeMounts[].name", Applied),
    f("spec.containers[].volumeMounts[].readOnly", Applied),
    f(
        "spec.containers[].volumeMounts[].recursiveReadOnly",
        Applied,
    ),
    f("spec.containers[].volumeMounts[].subPath", Applied),
    f("spec.containers[].volumeMounts[].subPathExpr", Applied),
    f("spec.containers[].workingDir", Applied),
    f("spec.dnsConfig", AppliedWhole),
    f("spec.dnsPolicy", Applied),
    f(
        "spec.enableServiceLinks",
        NoEffect("there are no Services to make variables of"),
    ),
    f(
        "spec.ephemeralContainers",
        Refused("Kubernetes does not take them from a manifest either"),
    ),
    f("spec.hostAliases", AppliedWhole),
    f("spec.hostIPC", Applied),
    f("spec.hostNetwork", Applied),
    f("spec.hostPID", Applied),
    f(
        "spec.hostUsers",
        Only(&["true"], "pods have no user namespace of their own"),
    ),
    f("spec.hostname", Applied),
    f("spec.hostnameOverride", Refused("use hostname")),
    f("spec.imagePullSecrets", AppliedWhole),
    f("spec.nodeName", Applied),
    f("spec.nodeSelector", Refused(NO_SCHEDULER)),
    f("spec.os", Only(&["{\"name\":\"linux\"}"], NO_WINDOWS)),
    f("spec.overhead", Refused("there are no runtime classes")),
    f(
        "spec.preemptionPolicy",
        NoEffect("no pod is moved out of the way of another"),
    ),
    f(
        "spec.priority",
        NoEffect("no pod is moved out of the way of another"),
    ),
    f(
        "spec.priorityClassName",
        AppliedPart(
            "containers of `system-node-critical` are the last to be killed when memory runs out; no pod is moved out of \
             the way of another",
        ),
    ),
    f(
        "spec.readinessGates",
        Refused("nothing would ever set these conditions"),
    ),
    f("spec.resourceClaims", Refused(NO_RESOURCE_CLAIMS)),
    f(
        "spec.resources",
        Refused("set the resources of each container"),
    ),
    f("spec.restartPolicy", Applied),
    f(
        "spec.runtimeClassName",
        Refused("there is one runtime, which is built in"),
    ),
    f(
        "spec.schedulerName",
        Only(&["\"default-scheduler\""], NO_SCHEDULER),
    ),
    f("spec.schedulingGates", Refused(NO_SCHEDULER)),
    f("spec.securityContext", Applied),
    f("spec.securityContext.appArmorProfile", AppliedWhole),
    f("spec.securityContext.fsGroup", Applied),
    f(
        "spec.securityContext.fsGroupChangePolicy",
        NoEffect("only volumes that the node makes afresh are changed"),
    ),
    f("spec.securityContext.runAsGroup", Applied),
    f("spec.securityContext.runAsNonRoot", Applied),
    f("spec.securityContext.runAsUser", Applied),
    f(
        "spec.securityContext.seLinuxChangePolicy",
        Refused("SELinux labels are not set"),
    ),
    f(
        "spec.securityContext.seLinuxOptions",
        Refused("SELinux labels are not set"),
    ),
    f("spec.securityContext.seccompProfile", AppliedWhole),
    f("spec.securityContext.supplementalGroups", Applied),
    f("spec.securityContext.supplementalGroupsPolicy", Applied),
    f("spec.securityContext.sysctls", AppliedWhole),
    f("spec.securityContext.windowsOptions", Refused(NO_WINDOWS)),
    f(
        "spec.serviceAccount",
        Only(&["\"default\""], "there are no service account tokens"),
    ),
    f(
        "spec.serviceAccountName",
        Only(&["\"default\""], "there are no service account tokens"),
    ),
    f("spec.setHostnameAsFQDN", Applied),
    f("spec.shareProcessNamespace", Applied),
    f("spec.subdomain", Applied),
    f("spec.terminationGracePeriodSeconds", Applied),
    f("spec.tolerations", NoEffect("the node has no taints")),
    f("spec.topologySpreadConstraints", Refused(NO_SCHEDULER)),
    f("spec.volumes", Applied),
    f("spec.volumes[].name", Applied),
    f("spec.volumes[].configMap", AppliedWhole),
    f("spec.volumes[].downwardAPI", AppliedWhole),
    f("spec.volumes[].emptyDir", AppliedWhole),
    f("spec.volumes[].hostPath", AppliedWhole),
    f("spec.volumes[].projected", Applied),
    f("spec.volumes[].projected.defaultMode", Applied),
    f("spec.volumes[].projected.sources", Applied),
    f("spec.volumes[].projected.sources[].configMap", AppliedWhole),
    f(
        "spec.volumes[].projected.sources[].downwardAPI",
        AppliedWhole,
    ),
    f("spec.volumes[].projected.sources[].secret", AppliedWhole),
    f(
        "spec.volumes[].projected.sources[].*",
        Refused("the sources of this node are configMap, secret and downwardAPI"),
    ),
    f("spec.volumes[].secret", AppliedWhole),
    f(
        "spec.volumes[].*",
        Refused(
            "the volumes of this node are emptyDir, hostPath, configMap, secret, downwardAPI and projected",
        ),
    ),
];
