//! `podling images verify`: finds what is damaged, and mends it with as little as possible.

use clap::Args;
use podling_images::{Healed, ImageStore, Problem, PullOptions};
use serde_json::{Value, json};

use super::super::{CommandError, Exit, agent};
use super::{OutputArg, trust};
use crate::node::{Config, registries};

/// Check that all images are whole, and mend what is not
#[derive(Debug, Args)]
#[command(after_help = "\
Examples, after a power cut:
  podling images verify                 check, and mend
  podling images verify --offline       mend only with what is here
  podling images verify --check         check only: nothing is written

Blobs are compared with their digests, unpacked files with the list that was written with them. A
damaged layer is unpacked again from its blob; a damaged blob is fetched again from its registry. A
running container keeps what it has; its next start has the whole layer.

JSON is an array with, for each problem: path, problem, images, and healed: unpacked, rebuilt,
fetched, dropped, whole, or null where it could not be mended, with the reason in error. An empty
array means that all was well.

Exit status: 0 all images are whole now, 1 some are not.")]
pub struct VerifyArgs {
    /// Mend nothing
    #[arg(long)]
    pub check: bool,
    /// Fetch nothing: mend only with what is here
    #[arg(long, conflicts_with = "check")]
    pub offline: bool,
    #[command(flatten)]
    pub output: OutputArg,
}

/// What became of a problem.
enum Outcome {
    Mended(&'static str),
    Broken(Option<String>),
}

pub(super) fn verify(
    store: &ImageStore,
    args: &VerifyArgs,
    config: &Config,
) -> Result<Exit, CommandError> {
    let problems = store
        .verify()
        .map_err(|e| CommandError::new("cannot verify images").because(e))?;
    let outcomes = mend(store, args, config, &problems)?;
    let found: Vec<_> = problems.iter().zip(&outcomes).collect();
    if args.output.is_json() {
        let views = found
            .iter()
            .map(|(problem, outcome)| view(problem, outcome));
        super::print_json(&views.collect::<Vec<_>>())?;
    } else {
        let text: String = found
            .iter()
            .map(|(problem, outcome)| text(problem, outcome))
            .collect();
        super::print(&text)?;
    }
    let is_broken = |outcome: &Outcome| matches!(outcome, Outcome::Broken(_));
    if outcomes.iter().any(is_broken) {
        return Ok(Exit::Negative);
    }
    if !args.output.is_json() {
        super::print("all images are whole\n")?;
    }
    Ok(Exit::Done)
}

fn mend(
    store: &ImageStore,
    args: &VerifyArgs,
    config: &Config,
    problems: &[Problem],
) -> Result<Vec<Outcome>, CommandError> {
    if args.check || problems.is_empty() {
        return Ok(problems.iter().map(|_| Outcome::Broken(None)).collect());
    }
    let failed = |problem: &Problem| format!("cannot mend {}", problem.path.display());
    if args.offline {
        let heal = |problem| {
            let healed = store.heal(problem, None);
            healed
                .map(outcome)
                .map_err(|e| CommandError::new(failed(problem)).because(e))
        };
        return problems.iter().map(heal).collect();
    }
    let options = PullOptions {
        policy: trust::policy(config)?,
        registries: registries::settings(config),
        platform: config.platform(),
        ..PullOptions::default()
    };
    agent::runtime()?.block_on(async {
        let mut outcomes = Vec::new();
        for problem in problems {
            let healed = store.heal_from_registry(problem, &options).await;
            let healed = healed.map_err(|e| CommandError::new(failed(problem)).because(e))?;
            outcomes.push(outcome(healed));
        }
        Ok(outcomes)
    })
}

fn outcome(healed: Healed) -> Outcome {
    match healed {
        Healed::Unpacked => Outcome::Mended("unpacked"),
        Healed::Rebuilt => Outcome::Mended("rebuilt"),
        Healed::Fetched => Outcome::Mended("fetched"),
        Healed::Dropped => Outcome::Mended("dropped"),
        Healed::Whole => Outcome::Mended("whole"),
        Healed::Broken(why) => {
            let mut text = why.to_string();
            let mut cause = why.source();
            while let Some(source) = cause {
                text.push_str(&format!(": {source}"));
                cause = source.source();
            }
            Outcome::Broken(Some(text))
        }
    }
}

fn text(problem: &Problem, outcome: &Outcome) -> String {
    let mut text = format!("{}: {}\n", problem.path.display(), problem.what);
    match outcome {
        Outcome::Mended(how) => text.push_str(match *how {
            "unpacked" => "    mended: unpacked again from its blob\n",
            "rebuilt" => "    mended: made again from index.json and the blobs; its signatures have to be pulled again\n",
            "fetched" => "    mended: fetched again\n",
            "dropped" => "    the compressed layer is dropped, and fetched again when its registry can be reached; its files are whole\n",
            _ => "    mended by somebody else, or needed no more\n",
        }),
        Outcome::Broken(why) => {
            if let Some(why) = why {
                text.push_str(&format!("    cannot be mended: {why}\n"));
            }
            let remedy = match why {
                Some(_) => "load or pull it again",
                None => "`podling images verify` mends it, or tells why it cannot",
            };
            for reference in &problem.images {
                text.push_str(&format!("    needed by {reference}: {remedy}\n"));
            }
        }
    }
    text
}

fn view(problem: &Problem, outcome: &Outcome) -> Value {
    let (healed, error) = match outcome {
        Outcome::Mended(how) => (Some(how), None),
        Outcome::Broken(why) => (None, why.as_deref()),
    };
    json!({
        "path": problem.path.display().to_string(),
        "problem": problem.what,
        "images": problem.images,
        "healed": healed,
        "error": error,
    })
}
