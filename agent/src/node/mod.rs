//! The node: its configuration, and what it owns while it runs.

pub mod config;

pub use config::Config;
