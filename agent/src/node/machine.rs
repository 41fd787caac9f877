//! What this machine lets the agent do.

/// The lowest OOM score that the agent may give: the kernel lets only processes with `CAP_SYS_RESOURCE` go below
/// their own (proc_pid_oom_score_adj(5)). Said once in the log, since Guaranteed pods are worse protected then.
pub(super) fn min_oom_score_adj() -> i32 {
    const SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    if effective >> SYS_RESOURCE & 1 == 1 {
        return -1000;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    tracing::warn!(
        lowest = own,
        "without CAP_SYS_RESOURCE pods cannot be given a lower OOM score: Guaranteed pods are less protected"
    );
    own
}
