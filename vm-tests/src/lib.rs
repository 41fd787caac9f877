//! Boots real virtual machines with systemd and cgroup v2 and tries the whole product: see `tests/`.
