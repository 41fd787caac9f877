//! The OCI runtime's command line and the state that it keeps on disk.
