//! The OCI runtime command.

fn main() {}
