//! `podling status`: the node at a glance.

use std::io::Write;

use clap::Args;
use jiff::Timestamp;

use super::client::AgentClient;
use super::error::written;
use super::{CommandError, Directories, Exit, age, get};
use crate::api::{NodeStatus, ProblemView};

/// Show the node: version, sources, pods, and what is wrong with manifests
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling status
  podling status --json | jq -e '.problems == []'      for scripts: is all well with the manifests?

Exit status: 0 if the agent answers, whatever it says.")]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: &StatusArgs, directories: &Directories) -> Result<Exit, CommandError> {
    let status: NodeStatus = AgentClient::new(directories)
        .get("/podling/v1/status")
        .map_err(|e| e.into_command_error("cannot learn the node's status".to_owned()))?;
    let text = if args.json {
        get::json(&status)?
    } else {
        render(&status, Timestamp::now())
    };
    written(std::io::stdout().lock().write_all(text.as_bytes()))
}

fn render(status: &NodeStatus, now: Timestamp) -> String {
    let info = &status.info;
    let mut text = format!(
        "node      {}\nagent     podling {}, process {}, for {}\n",
        info.node,
        info.version,
        info.pid,
        age::since(Some(info.started_at), now)
    );
    for (at, source) in info.sources.iter().enumerate() {
        let head = if at == 0 { "sources" } else { "" };
        text.push_str(&format!("{head:<9} {source}\n"));
    }
    if info.sources.is_empty() {
        text.push_str("sources   none\n");
    }
    text.push_str(&format!(
        "data      {}\nrun       {}\nlogs      {}\n",
        info.data_dir.display(),
        info.run_dir.display(),
        info.log_dir.display()
    ));
    let pods = &status.pods;
    let mut counts = vec![format!("{} ready", pods.ready)];
    for (count, word) in [
        (pods.unready, "not ready"),
        (pods.completed, "completed"),
        (pods.failed, "failed"),
    ] {
        if count > 0 {
            counts.push(format!("{count} {word}"));
        }
    }
    text.push_str(&format!(
        "pods      {}: {}\n",
        pods.total,
        counts.join(", ")
    ));
    if status.problems.is_empty() {
        text.push_str("problems  none\n");
    } else {
        text.push_str(&format!("problems  {}\n", status.problems.len()));
        for problem in &status.problems {
            text.push('\n');
            text.push_str(&render_problem(problem, now));
        }
    }
    text
}

/// Where, what, and what to do about it.
pub(super) fn render_problem(problem: &ProblemView, now: Timestamp) -> String {
    let mut text = format!("  {}", problem.at);
    if let Some(object) = &problem.object {
        text.push_str(&format!(" ({object})"));
    }
    text.push_str(&format!(", for {}\n", age::since(Some(problem.since), now)));
    if let Some(field) = &problem.field {
        text.push_str(&format!("    {field}:\n"));
    }
    text.push_str(&format!(
        "    {}\n",
        problem.message.replace('\n', "\n    ")
    ));
    if let Some(remedy) = &problem.remedy {
        text.push_str(&format!("    hint: {}\n", remedy.replace('\n', "\n    ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{NodeInfo, PodCounts};

    #[test]
    fn a_node_with_a_problem() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().expect("a time");
        let status = NodeStatus {
            info: NodeInfo {
                node: "edge-1".into(),
                version: "0.1.0".into(),
                started_at: "2026-01-01T00:30:00Z".parse().expect("a time"),
                pid: 7,
                sources: vec!["directory /m".into(), "etcd /podling/".into()],
                run_dir: "/run/podling".into(),
                data_dir: "/var/lib/podling".into(),
                log_dir: "/var/log/pods".into(),
                pinned_images: Vec::new(),
            },
            pods: PodCounts {
                total: 3,
                ready: 2,
                failed: 1,
                ..PodCounts::default()
            },
            problems: vec![ProblemView {
                at: "/m/web.yaml:9".into(),
                object: Some("Pod default/web".into()),
                field: Some("spec.containers[0].comand".into()),
                message: "there is no such field".into(),
                remedy: Some("did you mean `command`?".into()),
                since: "2026-01-01T00:59:00Z".parse().expect("a time"),
            }],
        };
        insta::assert_snapshot!(render(&status, now), @r"
        node      edge-1
        agent     podling 0.1.0, process 7, for 30m
        sources   directory /m
                  etcd /podling/
        data      /var/lib/podling
        run       /run/podling
        logs      /var/log/pods
        pods      3: 2 ready, 1 failed
        problems  1

          /m/web.yaml:9 (Pod default/web), for 60s
            spec.containers[0].comand:
            there is no such field
            hint: did you mean `command`?
        ");
    }
}
