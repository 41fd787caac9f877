//! Probes and hooks, with their ports resolved and their times in milliseconds.

use k8s_openapi::api::core::v1::{
    Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe as ApiProbe, SleepAction,
    TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use podling_runtime::pod::plan::{Handler, Probe};

use super::ContainerError;

/// The probes and hooks of a container.
#[derive(Debug, Default)]
pub(super) struct Handlers {
    pub(super) startup: Option<Probe>,
    pub(super) liveness: Option<Probe>,
    pub(super) readiness: Option<Probe>,
    pub(super) post_start: Option<Handler>,
    pub(super) pre_stop: Option<Handler>,
}

pub(super) fn handlers(container: &Container) -> Result<Handlers, ContainerError> {
    let probe_of = |p: &Option<ApiProbe>| p.as_ref().map(|p| probe(p, container)).transpose();
    let lifecycle = container.lifecycle.as_ref();
    let hook_of = |h: Option<&LifecycleHandler>| h.map(|h| hook(h, container)).transpose();
    Ok(Handlers {
        startup: probe_of(&container.startup_probe)?.flatten(),
        liveness: probe_of(&container.liveness_probe)?.flatten(),
        readiness: probe_of(&container.readiness_probe)?.flatten(),
        post_start: hook_of(lifecycle.and_then(|l| l.post_start.as_ref()))?.flatten(),
        pre_stop: hook_of(lifecycle.and_then(|l| l.pre_stop.as_ref()))?.flatten(),
    })
}

fn probe(probe: &ApiProbe, container: &Container) -> Result<Option<Probe>, ContainerError> {
    let grpc = probe.grpc.as_ref().map(|grpc| Handler::Grpc {
        port: u16::try_from(grpc.port).unwrap_or(0),
        service: grpc.service.clone().unwrap_or_default(),
    });
    let common = handler(
        probe.exec.as_ref(),
        probe.http_get.as_ref(),
        probe.tcp_socket.as_ref(),
        None,
        container,
    )?;
    let Some(handler) = common.or(grpc) else {
        return Ok(None);
    };
    let millis = |secs: Option<i32>, default: i32| {
        u64::try_from(secs.unwrap_or(default)).unwrap_or(0) * 1000
    };
    let count = |times: Option<i32>, default: u32| {
        times
            .and_then(|t| u32::try_from(t).ok())
            .unwrap_or(default)
            .max(1)
    };
    Ok(Some(Probe {
        handler,
        initial_delay_ms: millis(probe.initial_delay_seconds, 0),
        period_ms: millis(probe.period_seconds, 10).max(1000),
        timeout_ms: millis(probe.timeout_seconds, 1).max(1000),
        success_threshold: count(probe.success_threshold, 1),
        failure_threshold: count(probe.failure_threshold, 3),
        termination_grace_secs: probe
            .termination_grace_period_seconds
            .and_then(|s| u64::try_from(s).ok()),
    }))
}

fn hook(hook: &LifecycleHandler, container: &Container) -> Result<Option<Handler>, ContainerError> {
    handler(
        hook.exec.as_ref(),
        hook.http_get.as_ref(),
        hook.tcp_socket.as_ref(),
        hook.sleep.as_ref(),
        container,
    )
}

fn handler(
    exec: Option<&ExecAction>,
    http: Option<&HTTPGetAction>,
    tcp: Option<&TCPSocketAction>,
    sleep: Option<&SleepAction>,
    container: &Container,
) -> Result<Option<Handler>, ContainerError> {
    if let Some(exec) = exec {
        return Ok(Some(Handler::Exec {
            command: exec.command.clone().unwrap_or_default(),
        }));
    }
    if let Some(http) = http {
        let path = http
            .path
            .as_deref()
            .filter(|path| !path.is_empty())
            .unwrap_or("/");
        return Ok(Some(Handler::Http {
            tls: http.scheme.as_deref() == Some("HTTPS"),
            host: http.host.clone().filter(|host| !host.is_empty()),
            port: port(&http.port, container)?,
            path: if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            },
            headers: http
                .http_headers
                .iter()
                .flatten()
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
        }));
    }
    if let Some(tcp) = tcp {
        return Ok(Some(Handler::Tcp {
            host: tcp.host.clone().filter(|host| !host.is_empty()),
            port: port(&tcp.port, container)?,
        }));
    }
    Ok(sleep.map(|sleep| Handler::Sleep {
        seconds: super::seconds(sleep.seconds),
    }))
}

/// A port by number, or by the name that this container gives to one.
fn port(port: &IntOrString, container: &Container) -> Result<u16, ContainerError> {
    let unknown = |text: String| ContainerError::Port(text);
    match port {
        IntOrString::Int(number) => u16::try_from(*number).map_err(|_| unknown(number.to_string())),
        IntOrString::String(name) => {
            let named = container
                .ports
                .iter()
                .flatten()
                .find(|p| p.name.as_deref() == Some(name));
            let number = named
                .map(|p| p.container_port)
                .or_else(|| name.parse().ok());
            number
                .and_then(|n| u16::try_from(n).ok())
                .ok_or_else(|| unknown(name.clone()))
        }
    }
}
