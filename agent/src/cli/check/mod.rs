//! `podling check`: what this machine can and cannot do, each found by really trying it, harmlessly.

mod probe;

use std::io::Write;

use anstyle::{AnsiColor, Style};
use clap::Args;
use serde::Serialize;

use super::error::written;
use super::{CommandError, Directories, Exit, get};

/// Check what this machine can do, and what is missing
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling check
  podling check --json | jq -r '.[] | select(.ok | not) | .name'

Each line is found by really trying it, in namespaces of its own: nothing of the machine is changed.

Exit status: 0 if nothing that is needed is missing, 1 otherwise.")]
pub struct CheckArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Need {
    /// No pod runs without it.
    Required,
    /// Pods run, with less.
    Wanted,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    name: &'static str,
    need: Need,
    ok: bool,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'static str>,
}

impl Finding {
    fn new(
        name: &'static str,
        need: Need,
        tried: Result<String, String>,
        remedy: &'static str,
    ) -> Self {
        let ok = tried.is_ok();
        Self {
            name,
            need,
            ok,
            found: tried.unwrap_or_else(|e| e),
            remedy: (!ok).then_some(remedy),
        }
    }
}

pub(super) fn run(args: &CheckArgs, directories: &Directories) -> Result<Exit, CommandError> {
    let findings = probe::all(&directories.data);
    let text = if args.json {
        get::json(&findings)?
    } else {
        render(&findings)
    };
    written(anstream::stdout().lock().write_all(text.as_bytes()))?;
    let missing = findings.iter().any(|f| !f.ok && f.need == Need::Required);
    Ok(if missing { Exit::Negative } else { Exit::Done })
}

fn render(findings: &[Finding]) -> String {
    let paint = |colour: AnsiColor, word: &str| {
        let style: Style = colour.on_default().bold();
        format!("{}{word}{}", style.render(), style.render_reset())
    };
    let mut text = String::new();
    for finding in findings {
        let mark = match (finding.ok, finding.need) {
            (true, _) => paint(AnsiColor::Green, "ok     "),
            (false, Need::Required) => paint(AnsiColor::Red, "missing"),
            (false, Need::Wanted) => paint(AnsiColor::Yellow, "without"),
        };
        text.push_str(&format!("{mark}  {:<13} {}\n", finding.name, finding.found));
        if let Some(remedy) = finding.remedy {
            text.push_str(&format!("{:24}hint: {remedy}\n", ""));
        }
    }
    let missing = findings
        .iter()
        .filter(|f| !f.ok && f.need == Need::Required)
        .count();
    text.push_str(&match missing {
        0 => "\nThis machine can run pods.\n".to_owned(),
        1 => "\nThis machine cannot run pods yet: one thing is missing.\n".to_owned(),
        n => format!("\nThis machine cannot run pods yet: {n} things are missing.\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_with_a_remedy() {
        let findings = [
            Finding::new("pidfd", Need::Required, Ok("works".into()), "x"),
            Finding::new("user", Need::Required, Err("user 1000".into()), "be root"),
            Finding::new("systemd", Need::Wanted, Err("does not run".into()), "none"),
        ];
        let text = anstream::adapter::strip_str(&render(&findings)).to_string();
        insta::assert_snapshot!(text, @r"
        ok       pidfd         works
        missing  user          user 1000
                                hint: be root
        without  systemd       does not run
                                hint: none

        This machine cannot run pods yet: one thing is missing.
        ");
    }
}
