//! Linux containers from OCI specs, and the pod supervisor.

pub mod cgroup;
pub mod confined;
pub mod container;
mod error_chain;
mod kernel_file;
pub mod oci;
pub mod pod;
pub mod seccomp;
pub mod start;
pub mod sys;

pub use error_chain::chain;
