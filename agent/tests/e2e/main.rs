//! End to end: the real programs, real containers, in namespaces of the test's own. One module for each thing a
//! user is promised.
#![cfg(feature = "privileged-tests")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../node/mod.rs"]
mod node;

mod command_line;
mod exec;
mod p02_manifests;
mod p03_etcd;
mod p04_disk;
mod p04_images;
mod p04_images_push;
mod p04_images_whole;
mod p04_registries;
mod p04_signatures;
mod p05_runtime;
mod p06_pods;
mod p07_health;
mod p08_network;
mod p09_logs;
mod p10_termination;
mod p11_agent_restarts;
mod run_command;
