//! `podling images verify`.

use clap::Args;
use podling_images::{ImageStore, Problem};
use serde_json::{Value, json};

use super::super::{CommandError, Exit};
use super::OutputArg;

/// Check that all images are whole: blobs against their digests, layers against their sizes
#[derive(Debug, Args)]
#[command(after_help = "\
Example, after a power cut:
  podling images verify || echo 'pull or load what it names again'

JSON is an array with, for each problem: path, problem and images; an empty one means that all is
well.

Exit status: 0 all are whole, 1 some are not.")]
pub struct VerifyArgs {
    #[command(flatten)]
    pub output: OutputArg,
}

pub(super) fn verify(store: &ImageStore, args: &VerifyArgs) -> Result<Exit, CommandError> {
    let problems = store
        .verify()
        .map_err(|e| CommandError::new("cannot verify images").because(e))?;
    if args.output.is_json() {
        super::print_json(&problems.iter().map(view).collect::<Vec<_>>())?;
    } else if problems.is_empty() {
        println!("all images are whole");
    }
    if problems.is_empty() {
        return Ok(Exit::Done);
    }
    if !args.output.is_json() {
        for problem in &problems {
            println!("{}: {}", problem.path.display(), problem.what);
            for reference in &problem.images {
                println!("    needed by {reference}: load or pull it again");
            }
        }
    }
    Ok(Exit::Negative)
}

fn view(problem: &Problem) -> Value {
    json!({
        "path": problem.path.display().to_string(),
        "problem": problem.what,
        "images": problem.images,
    })
}
