//! What Podling asks of systemd.
