//! `podling why`: what a pod is waiting for.

use std::io::Write;

use clap::Args;

use super::client::AgentClient;
use super::error::written;
use super::name::{NamespaceArg, PodName};
use super::{CommandError, Directories, Exit, get, offline};
use crate::api::{Explanation, explain};

/// Explain what a pod is waiting for, or why it fails
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  podling why hello

Says what each container waits for, how it ended last, what happens next by itself, and what you can do.")]
pub struct WhyArgs {
    /// The pod
    #[arg(value_name = "POD")]
    pub pod: PodName,
    #[command(flatten)]
    pub namespace: NamespaceArg,
}

pub(super) fn run(args: &WhyArgs, directories: &Directories) -> Result<Exit, CommandError> {
    let (namespace, name) = (&args.namespace.namespace, &args.pod.0);
    let client = AgentClient::new(directories);
    let explanation = match client.get(&format!("/podling/v1/why/{namespace}/{name}")) {
        Ok(explanation) => explanation,
        Err(e) if e.is_not_found() => return Err(get::not_found(namespace, name, directories)),
        Err(e) if e.is_away() && directories.pods().is_dir() => {
            offline_explanation(namespace, name, directories)?
        }
        Err(e) => return Err(e.without_pods(format!("cannot explain pod {name}"), directories)),
    };
    written(
        std::io::stdout()
            .lock()
            .write_all(render(&explanation).as_bytes()),
    )
}

/// From what the supervisor says.
fn offline_explanation(
    namespace: &str,
    name: &str,
    directories: &Directories,
) -> Result<Explanation, CommandError> {
    eprintln!(
        "note: no agent answers in {}; this is what the pod's supervisor says",
        directories.run.display()
    );
    let pods = offline::pods(directories)?;
    let pod = pods.iter().find(|p| {
        p.metadata.namespace.as_deref() == Some(namespace)
            && p.metadata.name.as_deref() == Some(name)
    });
    pod.map(explain)
        .ok_or_else(|| get::not_found(namespace, name, directories))
}

/// A sentence, then a paragraph for each reason.
pub(super) fn render(explanation: &Explanation) -> String {
    let mut text = format!("{}\n", explanation.verdict);
    for reason in &explanation.reasons {
        let indented = |line: &str| format!("    {}\n", line.replace('\n', "\n    "));
        text.push_str(&format!("\n  {}\n", reason.about));
        text.push_str(&indented(&reason.what));
        if let Some(next) = &reason.next {
            text.push_str(&indented(&format!("next: {next}")));
        }
        if let Some(remedy) = &reason.remedy {
            text.push_str(&indented(&format!("hint: {remedy}")));
        }
    }
    text
}
