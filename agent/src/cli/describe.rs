//! `podling describe pod`.

use std::io::Write;

use clap::Args;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ContainerState, ContainerStatus, Pod, Probe, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::client::AgentClient;
use super::error::written;
use super::get::{self, Kind};
use super::name::{NamespaceArg, PodName};
use super::{CommandError, Directories, Exit, age, why};
use crate::api::summary::Summary;
use crate::api::{ORIGIN_ANNOTATION, explain};

/// Show all about a pod, for people
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  podling describe pod hello")]
pub struct DescribeArgs {
    /// What to describe
    #[arg(value_name = "KIND")]
    pub kind: Kind,
    /// Which; all of the namespace if none is named
    #[arg(value_name = "NAME")]
    pub names: Vec<PodName>,
    #[command(flatten)]
    pub namespace: NamespaceArg,
}

pub(super) fn run(args: &DescribeArgs, directories: &Directories) -> Result<Exit, CommandError> {
    let Kind::Pods = args.kind;
    let namespace = &args.namespace.namespace;
    let client = AgentClient::new(directories);
    let listed = get::list(&client, directories, Some(namespace), None)?;
    let now = Timestamp::now();
    let mut texts = Vec::new();
    for name in &args.names {
        let named = |p: &&Pod| p.metadata.name.as_deref() == Some(name.0.as_str());
        match listed.items.iter().find(named) {
            Some(pod) => texts.push(render(pod, now)),
            None => return Err(get::not_found(namespace, &name.0, directories)),
        }
    }
    if args.names.is_empty() {
        texts.extend(listed.items.iter().map(|pod| render(pod, now)));
    }
    written(
        std::io::stdout()
            .lock()
            .write_all(texts.join("\n\n").as_bytes()),
    )
}

/// Name and value in two columns, indented by depth.
struct Page {
    text: String,
}

impl Page {
    fn line(&mut self, depth: usize, name: &str, value: impl std::fmt::Display) {
        let indent = "  ".repeat(depth);
        let value = value.to_string();
        if value.is_empty() {
            self.text.push_str(&format!("{indent}{name}:\n"));
            return;
        }
        let width = 16_usize.saturating_sub(indent.len());
        let mut lines = value.lines();
        let first = lines.next().unwrap_or_default();
        self.text
            .push_str(&format!("{indent}{:<width$} {first}\n", format!("{name}:")));
        for line in lines {
            self.text.push_str(&format!("{:17}{line}\n", ""));
        }
    }
}

fn render(pod: &Pod, now: Timestamp) -> String {
    let mut page = Page {
        text: String::new(),
    };
    let (meta, spec, status) = (
        &pod.metadata,
        pod.spec.as_ref(),
        pod.status.clone().unwrap_or_default(),
    );
    let summary = Summary::of(pod, now);
    page.line(0, "Name", &summary.name);
    page.line(0, "Namespace", &summary.namespace);
    page.line(0, "UID", meta.uid.as_deref().unwrap_or_default());
    let annotations = meta.annotations.clone().unwrap_or_default();
    if let Some(origin) = annotations.get(ORIGIN_ANNOTATION) {
        page.line(0, "From", origin);
    }
    page.line(0, "Age", &summary.age);
    let pairs = |map: &std::collections::BTreeMap<String, String>| {
        let shown = map.iter().filter(|(k, _)| *k != ORIGIN_ANNOTATION);
        shown
            .map(|(k, v)| format!("{k}={v}"))
            .collect::<Vec<_>>()
            .join("\n")
    };
    for (name, map) in [
        ("Labels", meta.labels.clone().unwrap_or_default()),
        ("Annotations", annotations),
    ] {
        let text = pairs(&map);
        if !text.is_empty() {
            page.line(0, name, text);
        }
    }
    page.line(0, "Status", &summary.state);
    page.line(0, "IP", &summary.ip);
    if let Some(qos) = &status.qos_class {
        page.line(0, "QoS", qos);
    }
    if let Some(spec) = spec {
        let statuses = status
            .init_container_statuses
            .as_deref()
            .unwrap_or_default();
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        containers(&mut page, "Init containers", inits, statuses, now);
        let statuses = status.container_statuses.as_deref().unwrap_or_default();
        containers(&mut page, "Containers", &spec.containers, statuses, now);
        volumes(&mut page, spec.volumes.as_deref().unwrap_or_default());
    }
    let conditions = status.conditions.as_deref().unwrap_or_default();
    if !conditions.is_empty() {
        page.line(0, "Conditions", "");
        for c in conditions {
            let mut text = c.status.clone();
            for more in [&c.reason, &c.message]
                .into_iter()
                .flatten()
                .filter(|m| !m.is_empty())
            {
                text.push_str(&format!(", {more}"));
            }
            page.text.push_str(&format!("  {:<26} {text}\n", c.type_));
        }
    }
    page.text.push_str("\nWhy: ");
    page.text.push_str(&why::render(&explain(pod)));
    page.text
}

fn containers(
    page: &mut Page,
    title: &str,
    specs: &[Container],
    statuses: &[ContainerStatus],
    now: Timestamp,
) {
    if specs.is_empty() {
        return;
    }
    page.line(0, title, "");
    for spec in specs {
        page.line(1, &spec.name, "");
        page.line(2, "Image", spec.image.as_deref().unwrap_or("<none>"));
        let command = spec.command.iter().chain(&spec.args).flatten();
        let command: Vec<&str> = command.map(String::as_str).collect();
        if !command.is_empty() {
            page.line(2, "Command", command.join(" "));
        }
        let ports: Vec<String> = spec.ports.iter().flatten().map(port).collect();
        if !ports.is_empty() {
            page.line(2, "Ports", ports.join(", "));
        }
        if let Some(status) = statuses.iter().find(|s| s.name == spec.name) {
            let state = |s: &Option<ContainerState>| s.as_ref().map(|s| state_text(s, now));
            page.line(2, "State", state(&status.state).unwrap_or_default());
            if let Some(last) = state(&status.last_state).filter(|t| !t.is_empty()) {
                page.line(2, "Last state", last);
            }
            page.line(2, "Ready", if status.ready { "yes" } else { "no" });
            page.line(2, "Restarts", status.restart_count);
        }
        if let Some(resources) = &spec.resources {
            for (name, map) in [
                ("Requests", &resources.requests),
                ("Limits", &resources.limits),
            ] {
                let text: Vec<String> = map
                    .iter()
                    .flatten()
                    .map(|(k, v)| format!("{k} {}", v.0))
                    .collect();
                if !text.is_empty() {
                    page.line(2, name, text.join(", "));
                }
            }
        }
        for (name, probe) in [
            ("Startup", &spec.startup_probe),
            ("Liveness", &spec.liveness_probe),
            ("Readiness", &spec.readiness_probe),
        ] {
            if let Some(probe) = probe {
                page.line(2, name, probe_text(probe));
            }
        }
        let mounts: Vec<String> = spec
            .volume_mounts
            .iter()
            .flatten()
            .map(|m| {
                let mode = if m.read_only == Some(true) {
                    ", read-only"
                } else {
                    ""
                };
                format!("{} from {}{mode}", m.mount_path, m.name)
            })
            .collect();
        if !mounts.is_empty() {
            page.line(2, "Mounts", mounts.join("\n"));
        }
    }
}

fn port(port: &ContainerPort) -> String {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let mut text = format!("{}/{protocol}", port.container_port);
    if let Some(host) = port.host_port {
        text.push_str(&format!(" (host port {host})"));
    }
    text
}

fn state_text(state: &ContainerState, now: Timestamp) -> String {
    let ago = |t: &Option<Time>| age::since(t.as_ref().map(|t| t.0), now);
    let with = |reason: &Option<String>, message: &Option<String>| {
        let parts = [reason, message]
            .into_iter()
            .flatten()
            .filter(|t| !t.is_empty());
        parts.map(String::as_str).collect::<Vec<_>>().join(": ")
    };
    if let Some(running) = &state.running {
        format!("running for {}", ago(&running.started_at))
    } else if let Some(waiting) = &state.waiting {
        format!("waiting: {}", with(&waiting.reason, &waiting.message))
    } else if let Some(end) = &state.terminated {
        format!(
            "ended {} ago with code {}: {}",
            ago(&end.finished_at),
            end.exit_code,
            with(&end.reason, &end.message)
        )
    } else {
        String::new()
    }
}

fn probe_text(probe: &Probe) -> String {
    let port = |p: &IntOrString| match p {
        IntOrString::Int(n) => n.to_string(),
        IntOrString::String(name) => name.clone(),
    };
    let mut text = if let Some(http) = &probe.http_get {
        format!(
            "GET {} on port {}",
            http.path.as_deref().unwrap_or("/"),
            port(&http.port)
        )
    } else if let Some(tcp) = &probe.tcp_socket {
        format!("connect to port {}", port(&tcp.port))
    } else if let Some(exec) = &probe.exec {
        format!(
            "run {}",
            exec.command.as_deref().unwrap_or_default().join(" ")
        )
    } else if let Some(grpc) = &probe.grpc {
        format!("gRPC health on port {}", grpc.port)
    } else {
        "nothing".to_owned()
    };
    text.push_str(&format!(
        ", every {} s, {} failures count",
        probe.period_seconds.unwrap_or(10),
        probe.failure_threshold.unwrap_or(3)
    ));
    text
}

fn volumes(page: &mut Page, volumes: &[Volume]) {
    if volumes.is_empty() {
        return;
    }
    page.line(0, "Volumes", "");
    for volume in volumes {
        let text = if let Some(dir) = &volume.empty_dir {
            let medium = dir
                .medium
                .as_deref()
                .filter(|m| !m.is_empty())
                .unwrap_or("disk");
            format!("emptyDir on {medium}")
        } else if let Some(path) = &volume.host_path {
            format!("hostPath {}", path.path)
        } else if let Some(map) = &volume.config_map {
            format!("ConfigMap {}", map.name)
        } else if let Some(secret) = &volume.secret {
            format!(
                "Secret {}",
                secret.secret_name.as_deref().unwrap_or_default()
            )
        } else {
            "see `podling get pods -o yaml`".to_owned()
        };
        page.line(1, &volume.name, text);
    }
}
