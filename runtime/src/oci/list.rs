//! `list`

use serde_json::{Value, json};

use super::error::Result;
use super::print;
use super::state::{describe, owner, shown_pid};
use super::store::Store;

/// Options of `list`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
    /// Names only
    #[arg(short, long)]
    pub quiet: bool,
}

/// How `list` and `ps` print.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns
    #[default]
    Table,
    /// A JSON array
    Json,
}

/// Prints all containers.
pub(super) fn list(store: &Store, options: &Options) -> Result<()> {
    let records = store.list()?;
    if options.quiet {
        let names: Vec<&str> = records.iter().map(|record| record.id.as_str()).collect();
        return print::line(&names.join("\n"));
    }
    let mut containers = Vec::new();
    for record in records {
        let status = store.entry(&record.id)?.full_status(&record)?;
        containers.push((status, record));
    }
    if options.format == Format::Json {
        let all: Vec<Value> = containers
            .iter()
            .map(|(status, record)| describe(record, *status))
            .collect();
        return print::json(&json!(all));
    }
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    rows.extend(containers.iter().map(|(status, record)| {
        [
            record.id.clone(),
            shown_pid(record, *status).to_string(),
            status.name().to_owned(),
            record.bundle.display().to_string(),
            record.created.to_string(),
            owner(record),
        ]
    }));
    print::line(&columns(&rows))
}

/// Rows as columns, each as wide as its widest cell and three blanks.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|i| rows.iter().map(|row| row[i].len()).max().unwrap_or(0) + 3);
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(widths);
        let line: String = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        line.trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [["a", "bb"], ["cccc", "d"]].map(|row| row.map(str::to_owned));
        assert_eq!(columns(&rows), "a      bb\ncccc   d");
    }
}
