//! Linux containers from OCI specs, and the pod supervisor.

pub mod cgroup;
pub mod container;
mod kernel_file;
pub mod oci;
pub mod pod;
pub mod seccomp;
pub mod sys;
