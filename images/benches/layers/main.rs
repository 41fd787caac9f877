//! What layers cost, beside the tools that people would otherwise use: `make bench-images`, as root.
//!
//! Nothing is asserted: a table says what was measured, what others took in the same run, and what the budget is. All
//! is tried in turns, each on a new file system, so that a busy minute of the machine is shared by all. Ratios travel
//! between machines, times do not. Podling's pulls end when all is on the disk; the others leave that to the kernel.
//!
//! `PODLING_BENCH_RUNS` (5) is how often each thing is tried, `PODLING_BENCH_MIB` (350) the size of the generated gzip
//! layer, which has 50,000 files. Arguments choose sections: `unpack`, `pull`, `mount`. Layers are kept in
//! `target/images`.

#![allow(clippy::unwrap_used)]

#[path = "../../tests/support/mod.rs"]
mod support;
#[path = "../../../agent/benches/budgets/table.rs"]
#[allow(dead_code)]
mod table;

mod disk;
mod generate;
mod measure;
mod mount;
mod pull;
mod unpack;

use table::Table;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    runs: usize,
    /// The compressed size of the generated layer.
    mib: usize,
}

impl Effort {
    /// The turns: the first, which also warms the caches, is for memory, the others are for the time.
    fn looks(self) -> impl Iterator<Item = measure::Look> {
        let timed = std::iter::repeat_n(measure::Look::Time, self.runs);
        std::iter::once(measure::Look::Memory).chain(timed)
    }
}

fn main() {
    // Measured parts run in processes of their own, for their peak memory.
    if let Some(part) = std::env::var_os(measure::PART) {
        let words: Vec<String> = std::env::args().skip(1).collect();
        match part.to_str() {
            Some("unpack") => unpack::unpack(&words),
            Some("decompress") => unpack::decompress(&words),
            Some("pull") => pull::pull(&words),
            _ => panic!("unknown part"),
        }
        return;
    }
    if let Some(code) = disk::enter_namespace() {
        std::process::exit(code);
    }
    let number = |variable: &str, default: usize| {
        let text = std::env::var(variable).ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let effort = Effort {
        runs: number("PODLING_BENCH_RUNS", 5),
        mib: number("PODLING_BENCH_MIB", 350),
    };
    // Cargo adds `--bench`.
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let mut table = Table::default();
    type Section = fn(Effort, &mut Table);
    let sections: [(&str, Section); 3] = [
        ("unpack", unpack::measure),
        ("pull", pull::measure),
        ("mount", mount::measure),
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
    println!("{}", table.render());
}
