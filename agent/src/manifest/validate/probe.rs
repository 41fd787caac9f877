//! Probes and lifecycle hooks.

use k8s_openapi::api::core::v1::{
    Container, ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Faults;

/// The probes of one container, or why it may have none.
pub(super) fn probes(path: &str, container: &Container, none: Option<&str>, faults: &mut Faults) {
    let all = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (field, found) in all {
        let Some(found) = found else { continue };
        let path = format!("{path}.{field}");
        match none {
            Some(why) => faults.add(path, why),
            None => probe(&path, field, found, container, faults),
        }
    }
}

fn probe(path: &str, field: &str, probe: &Probe, container: &Container, faults: &mut Faults) {
    let handlers = [
        probe.exec.is_some(),
        probe.http_get.is_some(),
        probe.tcp_socket.is_some(),
        probe.grpc.is_some(),
    ];
    match handlers.iter().filter(|has| **has).count() {
        1 => {}
        0 => faults.add_with(
            path,
            "the probe does nothing",
            "add exec, httpGet, tcpSocket or grpc",
        ),
        _ => faults.add(path, "a probe does one thing only"),
    }
    exec(path, probe.exec.as_ref(), faults);
    http_get(path, probe.http_get.as_ref(), container, faults);
    tcp_socket(path, probe.tcp_socket.as_ref(), container, faults);
    let grpc_port = probe.grpc.as_ref().map(|grpc| i64::from(grpc.port));
    faults.between(&format!("{path}.grpc.port"), grpc_port, 1, 65535);
    let most = i64::from(i32::MAX);
    for (name, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("periodSeconds", probe.period_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        faults.between(&format!("{path}.{name}"), value.map(i64::from), 0, most);
    }
    if field != "readinessProbe" && probe.success_threshold.is_some_and(|n| n > 1) {
        let message = "must be 1: this probe has succeeded when it succeeds once";
        faults.add(format!("{path}.successThreshold"), message);
    }
    let grace = format!("{path}.terminationGracePeriodSeconds");
    faults.between(&grace, probe.termination_grace_period_seconds, 1, i64::MAX);
    if field == "readinessProbe" && probe.termination_grace_period_seconds.is_some() {
        faults.add(grace, "a readiness probe ends nothing");
    }
}

/// The hooks of one container, or why it may have none.
pub(super) fn lifecycle(
    path: &str,
    container: &Container,
    none: Option<&str>,
    faults: &mut Faults,
) {
    let Some(Lifecycle {
        post_start,
        pre_stop,
        ..
    }) = &container.lifecycle
    else {
        return;
    };
    if let Some(signal) = container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.stop_signal.as_deref())
    {
        let plain = |c: u8| c.is_ascii_uppercase() || c.is_ascii_digit() || c == b'+' || c == b'-';
        if !signal.starts_with("SIG") || !signal.bytes().all(plain) {
            let message = format!("`{signal}` is not a signal");
            faults.add_with(
                format!("{path}.lifecycle.stopSignal"),
                message,
                "write it like SIGTERM",
            );
        }
    }
    for (field, found) in [("postStart", post_start), ("preStop", pre_stop)] {
        let Some(found) = found else { continue };
        let path = format!("{path}.lifecycle.{field}");
        match none {
            Some(why) => faults.add(path, why),
            None => hook(&path, found, container, faults),
        }
    }
}

fn hook(path: &str, hook: &LifecycleHandler, container: &Container, faults: &mut Faults) {
    let handlers = [
        hook.exec.is_some(),
        hook.http_get.is_some(),
        hook.tcp_socket.is_some(),
        hook.sleep.is_some(),
    ];
    match handlers.iter().filter(|has| **has).count() {
        1 => {}
        0 => faults.add_with(path, "the hook does nothing", "add exec, httpGet or sleep"),
        _ => faults.add(path, "a hook does one thing only"),
    }
    exec(path, hook.exec.as_ref(), faults);
    http_get(path, hook.http_get.as_ref(), container, faults);
    let seconds = hook.sleep.as_ref().map(|sleep| sleep.seconds);
    faults.between(&format!("{path}.sleep.seconds"), seconds, 0, i64::MAX);
}

fn exec(path: &str, exec: Option<&ExecAction>, faults: &mut Faults) {
    if let Some(exec) = exec
        && exec.command.as_ref().is_none_or(Vec::is_empty)
    {
        faults.add(format!("{path}.exec.command"), "required");
    }
}

fn http_get(path: &str, get: Option<&HTTPGetAction>, container: &Container, faults: &mut Faults) {
    let Some(get) = get else { return };
    let path = format!("{path}.httpGet");
    faults.one_of(
        &format!("{path}.scheme"),
        get.scheme.as_deref(),
        &["HTTP", "HTTPS"],
    );
    host(&format!("{path}.host"), get.host.as_deref(), faults);
    port(&format!("{path}.port"), &get.port, container, faults);
    let target = get.path.as_deref().unwrap_or_default();
    if target.chars().any(|c| c.is_control() || c == ' ') {
        faults.add(
            format!("{path}.path"),
            "may not contain spaces or control characters",
        );
    }
    for (at, header) in get.http_headers.iter().flatten().enumerate() {
        let path = format!("{path}.httpHeaders[{at}]");
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c);
        if header.name.is_empty() || !header.name.bytes().all(plain) {
            faults.add(
                format!("{path}.name"),
                format!("`{}` is not a header", header.name),
            );
        }
        if header.value.chars().any(|c| c.is_control() && c != '\t') {
            faults.add(
                format!("{path}.value"),
                "may not contain control characters",
            );
        }
    }
}

fn tcp_socket(
    path: &str,
    socket: Option<&TCPSocketAction>,
    container: &Container,
    faults: &mut Faults,
) {
    if let Some(socket) = socket {
        let host_path = format!("{path}.tcpSocket.host");
        host(&host_path, socket.host.as_deref(), faults);
        port(
            &format!("{path}.tcpSocket.port"),
            &socket.port,
            container,
            faults,
        );
    }
}

/// An address, or a name that the node's `/etc/hosts` may have: probes do not ask DNS.
fn host(path: &str, host: Option<&str>, faults: &mut Faults) {
    let Some(host) = host.filter(|host| !host.is_empty()) else {
        return;
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"-._".contains(&c);
    if bare.parse::<std::net::IpAddr>().is_err() && !host.bytes().all(plain) {
        let remedy =
            "write an address or a name alone: scheme, port and path have fields of their own";
        faults.add_with(path, format!("`{host}` is not a host"), remedy);
    }
}

/// A number, or the name of one of the container's ports.
fn port(path: &str, port: &IntOrString, container: &Container, faults: &mut Faults) {
    match port {
        IntOrString::Int(number) => faults.between(path, Some(i64::from(*number)), 1, 65535),
        IntOrString::String(name) => {
            let ports = container.ports.iter().flatten();
            let known: Vec<&str> = ports.filter_map(|port| port.name.as_deref()).collect();
            if !known.contains(&name.as_str()) {
                let remedy = match super::super::decode::nearest(name, known.iter().copied()) {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None if name.parse::<u16>().is_ok() => "write it without quotes".to_owned(),
                    None => "give one of its ports this name, or write a number".to_owned(),
                };
                let message = format!("the container has no port `{name}`");
                faults.add_with(path, message, remedy);
            }
        }
    }
}
