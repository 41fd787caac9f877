//! What a cgroup used.

/// What a cgroup and everything below it used so far. A part is `None` when its controller is not there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Processor time.
    pub cpu: Option<CpuStats>,
    /// Memory.
    pub memory: Option<MemoryStats>,
    /// Processes and threads.
    pub pids: Option<PidsStats>,
    /// Block devices.
    pub io: Option<IoStats>,
    /// Pressure stall information of the processor (v2 only).
    pub cpu_pressure: Option<Pressure>,
    /// Pressure stall information of memory (v2 only).
    pub memory_pressure: Option<Pressure>,
    /// Pressure stall information of block devices (v2 only).
    pub io_pressure: Option<Pressure>,
}

/// Processor time, in nanoseconds since the cgroup was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuStats {
    /// User and system time.
    pub usage_ns: u64,
    /// In user mode.
    pub user_ns: u64,
    /// In the kernel.
    pub system_ns: u64,
    /// Enforcement periods that passed while the cgroup had something to run.
    pub periods: u64,
    /// Those in which it had to wait for the next.
    pub throttled_periods: u64,
    /// How long it had to wait.
    pub throttled_ns: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// All that is charged, page cache included.
    pub usage_bytes: u64,
    /// Usage less the inactive page cache: what the kubelet calls the working set.
    pub working_set_bytes: u64,
    /// Anonymous memory.
    pub rss_bytes: u64,
    /// Page cache.
    pub cache_bytes: u64,
    /// Mapped files.
    pub mapped_file_bytes: u64,
    /// Swap, without memory.
    pub swap_bytes: u64,
    /// The highest usage so far; zero where the kernel does not say.
    pub max_usage_bytes: u64,
    /// The limit; `None` when there is none.
    pub limit_bytes: Option<u64>,
    /// How often the limit was hit.
    pub limit_hits: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that had to read from a device.
    pub major_page_faults: u64,
}

/// Processes and threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PidsStats {
    /// Threads now.
    pub current: u64,
    /// The limit; `None` when there is none.
    pub limit: Option<u64>,
}

/// Block devices, all together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoStats {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
}

/// Time lost to waiting for a resource, in microseconds (`Documentation/accounting/psi.rst`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// At least one task waited.
    pub some_us: u64,
    /// All tasks waited.
    pub full_us: u64,
}
