//! One table: what was measured, what a peer took in the same run, and what the budget is.

use std::fmt::Write as _;
use std::time::Duration;

/// What a measurement must stay below.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Budget {
    /// This many times the peer's figure.
    Ratio(f64),
    /// This figure, in the unit of the row.
    Absolute(f64),
    /// Measured for its own sake.
    None,
}

/// Rows and remarks.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<[String; 6]>,
    notes: Vec<String>,
}

impl Table {
    /// Adds a row; `peers` are names and figures in the same unit, and the ratio is to the first of them.
    pub(crate) fn row(
        &mut self,
        what: &str,
        own: f64,
        unit: &str,
        peers: &[(&str, f64)],
        budget: Budget,
    ) {
        let ratio = peers
            .first()
            .filter(|(_, figure)| *figure > 0.0)
            .map(|(_, figure)| own / figure);
        let (limit, kept) = match (budget, ratio) {
            (Budget::Ratio(limit), Some(ratio)) => (format!("{limit} x"), verdict(ratio <= limit)),
            (Budget::Ratio(limit), None) => (format!("{limit} x"), "no peer"),
            (Budget::Absolute(limit), _) => {
                (format!("{} {unit}", figure(limit)), verdict(own <= limit))
            }
            (Budget::None, _) => (String::new(), ""),
        };
        let peers: Vec<String> = peers
            .iter()
            .map(|(name, value)| format!("{name} {}", figure(*value)))
            .collect();
        self.rows.push([
            what.to_string(),
            format!("{} {unit}", figure(own)),
            peers.join(", "),
            ratio
                .map(|ratio| format!("{ratio:.2} x"))
                .unwrap_or_default(),
            limit,
            kept.to_string(),
        ]);
    }

    /// Adds another table's rows and remarks.
    pub(crate) fn append(&mut self, other: Table) {
        self.rows.extend(other.rows);
        self.notes.extend(other.notes);
    }

    /// Adds a remark below the table, once.
    pub(crate) fn note(&mut self, text: &str) {
        if self.notes.iter().all(|note| note != text) {
            self.notes.push(text.to_string());
        }
    }

    /// The table as Markdown.
    pub(crate) fn render(&self) -> String {
        let header =
            ["what", "podling", "peers, same run", "ratio", "budget", ""].map(str::to_string);
        let mut widths = header.clone().map(|cell| cell.chars().count());
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let rule = widths.map(|width| "-".repeat(width.max(1)));
        let mut text = String::new();
        for row in [&header, &rule].into_iter().chain(&self.rows) {
            let cells: Vec<String> = row
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            writeln!(text, "| {} |", cells.join(" | ")).unwrap();
        }
        for note in &self.notes {
            writeln!(text, "- {note}").unwrap();
        }
        text
    }
}

fn verdict(kept: bool) -> &'static str {
    if kept { "kept" } else { "MISSED" }
}

fn figure(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// Durations of one thing, tried many times.
#[derive(Debug, Default, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub(crate) fn push(&mut self, duration: Duration) {
        self.0.push(duration.as_secs_f64() * 1000.0);
    }

    /// The median in milliseconds; None without samples.
    pub(crate) fn median_ms(&self) -> Option<f64> {
        self.quantile_ms(0.5)
    }

    /// The value that this part of the samples stays at or below, in milliseconds.
    pub(crate) fn quantile_ms(&self, part: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let index = (part * sorted.len() as f64).ceil() as usize;
        sorted.get(index.saturating_sub(1)).copied()
    }
}
