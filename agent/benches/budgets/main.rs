//! The budgets of the design, measured on this machine beside the peers that are installed: `make bench`, as root.
//!
//! Everything runs in network and mount namespaces and cgroups of its own, with the data directory below `TMPDIR` and
//! the run directory in memory, as `/run` is. Nothing is asserted: a table says what was
//! measured, what the peer took in the same run, and what the budget is. Ratios travel between machines, times do not.
//!
//! `PODLING_BENCH_RUNS` (20) is how often each thing is tried, `PODLING_BENCH_PODS` (20) how many pods run at once,
//! `PODLING_BENCH_IDLE_SECS` (10) how long the idle node is watched. Arguments choose sections: `oci`,
//! `pods`, `node`, `probes`.

#![allow(clippy::unwrap_used)]

#[path = "../../tests/node/mod.rs"]
#[allow(unreachable_pub)]
mod node;
// What is measured is what the program is laid out for.
#[path = "../../../runtime/examples/layout/bundle.rs"]
mod bundle;

mod floor;
mod machine;
mod node_bench;
mod oci;
mod podman;
mod pods;
mod probes;
mod table;

use table::Table;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    /// Tries of each thing.
    runs: usize,
    /// Pods at once.
    pods: usize,
    /// How long the idle node is watched.
    idle_secs: u64,
}

fn main() {
    if let Some(bundle) = std::env::var_os(floor::FLOOR) {
        floor::run(std::path::Path::new(&bundle));
        return;
    }
    let effort = Effort {
        runs: number("PODLING_BENCH_RUNS", 20),
        pods: number("PODLING_BENCH_PODS", 20),
        idle_secs: number("PODLING_BENCH_IDLE_SECS", 10) as u64,
    };
    // Cargo adds `--bench`.
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let mut table = Table::default();
    type Section = fn(Effort, &mut Table);
    let sections: [(&str, Section); 4] = [
        ("oci", oci::measure),
        ("pods", pods::measure),
        ("node", node_bench::measure),
        ("probes", probes::measure),
    ];
    for (name, measure) in sections {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            // One section that cannot be measured here must not keep the others from being shown.
            let part = std::panic::AssertUnwindSafe(|| measure(effort, &mut table));
            if std::panic::catch_unwind(part).is_err() {
                table.note(&format!("section {name} ended early: see the panic above"));
            }
        }
    }
    println!("{}", machine::describe());
    println!("{}", table.render());
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}
