//! Linux containers from OCI specs, and the pod supervisor.

pub mod cgroup;
pub mod pod;
pub mod seccomp;
