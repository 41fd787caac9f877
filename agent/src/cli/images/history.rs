//! `podling images history`: the steps of the build, as the configuration tells them.

use clap::Args;
use jiff::Timestamp;
use podling_images::{Image, ImageStore};
use serde::Serialize;

use super::super::table::Table;
use super::super::{CommandError, Exit};
use super::{OutputArg, list};

/// A line of the table shows this much of a command; JSON has all.
const COMMAND_CHARS: usize = 60;

/// Show how an image was built, step by step, the newest first
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling images history nginx:1.27
  podling images history nginx:1.27 -o json | jq -r '.[] | select(.size > 10000000) | .createdBy'

It is what the builder wrote into the configuration, and not checked. JSON is an array with, for
each step: created, createdBy, comment, size (of the files that it added, in bytes), and diffId,
null where a step changed no file.")]
pub struct HistoryArgs {
    /// Its name
    #[arg(value_name = "IMAGE")]
    pub image: String,
    #[command(flatten)]
    pub output: OutputArg,
    /// Show whole commands
    #[arg(long)]
    pub no_trunc: bool,
}

/// A step of the build.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    created: Option<String>,
    created_by: String,
    comment: String,
    size: u64,
    diff_id: Option<String>,
}

pub(super) fn history(store: &ImageStore, args: &HistoryArgs) -> Result<Exit, CommandError> {
    let image = super::find(store, &super::parse(&args.image)?)?;
    let steps = steps(&image);
    if args.output.is_json() {
        return super::print_json(&steps);
    }
    let mut table = Table::with_head(["CREATED", "LAYER", "SIZE", "CREATED BY"]);
    let now = Timestamp::now();
    for step in &steps {
        let created = step.created.as_ref().and_then(|text| text.parse().ok());
        let layer = step.diff_id.as_ref().and_then(|id| id.split(':').nth(1));
        table.row([
            list::created(created, now),
            layer.map_or("-".to_owned(), |hex| hex.chars().take(12).collect()),
            super::size(step.size),
            command(step, args.no_trunc),
        ]);
    }
    super::print(&table.render())
}

/// One line, whatever the builder wrote.
fn command(step: &Step, is_whole: bool) -> String {
    let text = match step.created_by.is_empty() {
        true => &step.comment,
        false => &step.created_by,
    };
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if is_whole || line.chars().count() <= COMMAND_CHARS {
        return line;
    }
    let start: String = line.chars().take(COMMAND_CHARS - 1).collect();
    start + "…"
}

/// The newest first. Layers that the history does not tell of are the oldest: some builders write none.
fn steps(image: &Image) -> Vec<Step> {
    let mut layers = image.parts.iter();
    let mut steps = Vec::new();
    let empty = Vec::new();
    let told = image.config.history().as_ref().unwrap_or(&empty);
    let with_layer = told.iter().filter(|h| h.empty_layer() != Some(true));
    let untold = image.parts.len().saturating_sub(with_layer.count());
    for layer in layers.by_ref().take(untold) {
        steps.push(Step {
            created: None,
            created_by: String::new(),
            comment: "(no history)".to_owned(),
            size: layer.file_bytes,
            diff_id: Some(layer.diff_id.to_string()),
        });
    }
    for step in told {
        let layer = match step.empty_layer() {
            Some(true) => None,
            _ => layers.next(),
        };
        steps.push(Step {
            created: step.created().clone(),
            created_by: step.created_by().clone().unwrap_or_default(),
            comment: step.comment().clone().unwrap_or_default(),
            size: layer.map_or(0, |layer| layer.file_bytes),
            diff_id: layer.map(|layer| layer.diff_id.to_string()),
        });
    }
    steps.reverse();
    steps
}
