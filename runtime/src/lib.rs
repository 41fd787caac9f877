//! Linux containers from OCI specs, and the pod supervisor.

pub mod pod;
