//! `podling images diff`.

use clap::Args;
use podling_images::{Aspect, Change, ChangeKind, ImageStore, changes};
use serde::Serialize;

use super::super::{CommandError, Exit};
use super::OutputArg;

/// Show which files differ between two images
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling images diff app:v3 app:v4
  podling images diff app:v3 app:v4 -o json | jq '[.[].sizeAfter] | add'
  podling images diff --exit-code app:v3 localhost/rebuilt || echo 'the rebuild differs'

Lines begin with A for added, D for removed, C for changed, and say what changed. Times are not
compared. JSON is an array with, for each path: path, change (added, removed or changed), what
(kind, content, mode, owner, capabilities), sizeBefore and sizeAfter.

Exit status: 0, or with --exit-code 1 if something differs.")]
pub struct DiffArgs {
    /// The first
    #[arg(value_name = "IMAGE")]
    pub before: String,
    /// What it is compared with
    #[arg(value_name = "OTHER")]
    pub after: String,
    #[command(flatten)]
    pub output: OutputArg,
    /// Exit with 1 if something differs
    #[arg(long)]
    pub exit_code: bool,
}

/// A path that differs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ChangeView {
    path: String,
    change: &'static str,
    what: Vec<&'static str>,
    size_before: u64,
    size_after: u64,
}

pub(super) fn diff(store: &ImageStore, args: &DiffArgs) -> Result<Exit, CommandError> {
    let before = super::find(store, &super::parse(&args.before)?)?;
    let after = super::find(store, &super::parse(&args.after)?)?;
    let found = changes(&before.layers, &after.layers).map_err(|e| {
        let what = format!("cannot compare {} with {}", args.before, args.after);
        CommandError::new(what).because(e)
    })?;
    let exit = match args.exit_code && !found.is_empty() {
        true => Exit::Negative,
        false => Exit::Done,
    };
    if args.output.is_json() {
        super::print_json(&found.iter().map(view).collect::<Vec<_>>())?;
    } else {
        super::print(&found.iter().map(line).collect::<String>())?;
    }
    Ok(exit)
}

fn view(change: &Change) -> ChangeView {
    let (kind, what) = match &change.kind {
        ChangeKind::Added => ("added", Vec::new()),
        ChangeKind::Removed => ("removed", Vec::new()),
        ChangeKind::Changed(what) => ("changed", what.iter().map(aspect).collect()),
    };
    ChangeView {
        path: change.path.to_string_lossy().into_owned(),
        change: kind,
        what,
        size_before: change.bytes_before,
        size_after: change.bytes_after,
    }
}

fn aspect(aspect: &Aspect) -> &'static str {
    match aspect {
        Aspect::Kind => "kind",
        Aspect::Content => "content",
        Aspect::Mode => "mode",
        Aspect::Owner => "owner",
        Aspect::Capabilities => "capabilities",
    }
}

fn line(change: &Change) -> String {
    let view = view(change);
    // A name from an image must not speak to the terminal.
    let path: String = view
        .path
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    match change.kind {
        ChangeKind::Added => format!("A {path}\n"),
        ChangeKind::Removed => format!("D {path}\n"),
        ChangeKind::Changed(_) => format!("C {path}  ({})\n", view.what.join(", ")),
    }
}
