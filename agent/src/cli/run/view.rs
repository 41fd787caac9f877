//! What `podling run` shows: a live table on a terminal, else a line for each change.

use std::collections::BTreeMap;
use std::io::{self, Write};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::super::columns::Columns;
use super::super::log::Tail;
use super::super::status::render_problem;
use crate::api::ProblemView;
use crate::api::summary::Summary;
use crate::pod::images;

/// Shows how pods are.
pub(super) enum View {
    /// Redrawn in place.
    Live(Live),
    /// Line by line.
    Plain(Plain),
}

impl View {
    pub(super) fn show(&mut self, pods: &[Pod], problems: &[ProblemView]) -> io::Result<()> {
        match self {
            Self::Live(live) => live.draw(pods, problems),
            Self::Plain(plain) => plain.print(pods, problems),
        }
    }

    /// Something that a user who looks for nothing but problems wants to know. A live table shows it by itself.
    pub(super) fn warn(&self, line: &str) {
        if let Self::Plain(_) = self {
            eprintln!("note: {line}");
        }
    }

    /// A line about the run itself.
    pub(super) fn say(&mut self, line: &str) -> io::Result<()> {
        match self {
            Self::Live(live) => {
                live.head = line.to_owned();
                Ok(())
            }
            Self::Plain(plain) if plain.quiet => Ok(()),
            Self::Plain(_) => say(line),
        }
    }
}

/// What keeps containers from starting, where the column STATUS names it and no more. Pulls that fail are in the log.
fn troubles(pod: &Pod, name: &str) -> Vec<String> {
    let status = pod.status.as_ref();
    let inits = status.and_then(|s| s.init_container_statuses.as_ref());
    let mains = status.and_then(|s| s.container_statuses.as_ref());
    let all = inits.into_iter().chain(mains).flatten();
    all.filter_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let last = || container.last_state.as_ref()?.terminated.as_ref();
        let message = match waiting.reason.as_deref()? {
            "ContainerCreating"
            | "PodInitializing"
            | "ErrImagePull"
            | "ImagePullBackOff"
            | images::NO_SPACE => None,
            "CrashLoopBackOff" => last()
                .filter(|ended| ended.reason.as_deref() == Some("StartError"))?
                .message
                .as_deref(),
            _ => waiting.message.as_deref(),
        }?;
        Some(format!(
            "pod {name}, container {}: {message}",
            container.name
        ))
    })
    .collect()
}

/// One whole line at a time, as several threads print.
pub(super) fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// The live table.
pub(super) struct Live {
    head: String,
    tail: Tail,
    /// Lines that are on the screen now.
    drawn: usize,
}

/// Log lines below the table: enough to see what goes on.
const LOG_LINES: usize = 10;

impl Live {
    pub(super) fn new(tail: Tail) -> Self {
        Self {
            head: String::new(),
            tail,
            drawn: 0,
        }
    }

    /// Something was shown already: an empty table says that nothing is left.
    fn no_pods(&self) -> &'static str {
        if self.drawn > 0 {
            "No pods."
        } else {
            "No pods yet."
        }
    }

    fn draw(&mut self, pods: &[Pod], problems: &[ProblemView]) -> io::Result<()> {
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
        let (columns, rows) =
            size.map_or((80, 24), |s| (usize::from(s.ws_col), usize::from(s.ws_row)));
        let lines = self.lines(pods, problems, rows.saturating_sub(1));
        let mut text = String::new();
        if self.drawn > 0 {
            // Up to the first line, to its begin.
            text.push_str(&format!("\x1b[{}F", self.drawn));
        }
        for line in &lines {
            // Cut rather than wrapped: a wrapped line would be two to the terminal and one to us.
            text.extend(line.chars().filter(|c| !c.is_control()).take(columns));
            text.push_str("\x1b[K\n");
        }
        text.push_str("\x1b[J");
        self.drawn = lines.len();
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// The table always, then problems, then as many log lines as fit.
    fn lines(&self, pods: &[Pod], problems: &[ProblemView], rows: usize) -> Vec<String> {
        let now = Timestamp::now();
        let summaries: Vec<Summary> = pods.iter().map(|p| Summary::of(p, now)).collect();
        let columns = Columns {
            namespace: summaries.iter().any(|s| s.namespace != "default"),
            ip: true,
            images: false,
        };
        let mut lines = columns.table(&summaries).lines(&mut Vec::new());
        if summaries.is_empty() {
            lines = vec![self.no_pods().to_owned()];
        }
        let told: Vec<String> = pods
            .iter()
            .zip(&summaries)
            .flat_map(|(pod, summary)| troubles(pod, &label(summary)))
            .collect();
        if !told.is_empty() {
            lines.push(String::new());
            lines.extend(told);
        }
        for problem in problems {
            lines.push(String::new());
            lines.extend(render_problem(problem, now).lines().map(str::to_owned));
        }
        let log = self
            .tail
            .last(LOG_LINES.min(rows.saturating_sub(lines.len() + 3)));
        if !log.is_empty() {
            lines.push(String::new());
            lines.extend(log);
        }
        lines.push(String::new());
        lines.push(self.head.clone());
        if lines.len() > rows {
            let hidden = lines.len() - rows;
            lines.truncate(rows.saturating_sub(2));
            lines.push(format!(
                "… {} lines more: the terminal is too small",
                hidden + 1
            ));
            lines.push(self.head.clone());
        }
        lines
    }
}

/// A line for each change.
pub(super) struct Plain {
    pub(super) quiet: bool,
    shown: BTreeMap<String, String>,
    problems: Vec<ProblemView>,
    /// What was told of pods that wait.
    troubles: Vec<String>,
}

impl Plain {
    pub(super) fn new(quiet: bool) -> Self {
        Self {
            quiet,
            shown: BTreeMap::new(),
            problems: Vec::new(),
            troubles: Vec::new(),
        }
    }

    fn print(&mut self, pods: &[Pod], problems: &[ProblemView]) -> io::Result<()> {
        let now = Timestamp::now();
        let mut gone = std::mem::take(&mut self.shown);
        let mut troubled = Vec::new();
        for pod in pods {
            let summary = Summary::of(pod, now);
            let name = label(&summary);
            let line = change(&name, &summary);
            let before = gone.remove(&name);
            if !self.quiet && before.as_ref() != Some(&line) {
                say(&line)?;
            }
            let told = troubles(pod, &name);
            for trouble in &told {
                if !self.troubles.contains(trouble) {
                    eprintln!("problem: {trouble}");
                }
            }
            troubled.extend(told);
            self.shown.insert(name, line);
        }
        self.troubles = troubled;
        for name in gone.keys().filter(|_| !self.quiet) {
            say(&format!("pod {name}: gone"))?;
        }
        for problem in problems {
            if !self.problems.contains(problem) {
                eprint!(
                    "{}",
                    render_problem(problem, now).replacen("  ", "problem: ", 1)
                );
            }
        }
        self.problems = problems.to_vec();
        Ok(())
    }
}

fn label(summary: &Summary) -> String {
    if summary.namespace == "default" {
        summary.name.clone()
    } else {
        format!("{}/{}", summary.namespace, summary.name)
    }
}

/// Without what changes by itself: age and times.
fn change(name: &str, summary: &Summary) -> String {
    let mut line = format!(
        "pod {name}: {}, {}/{} ready",
        summary.state, summary.ready, summary.containers
    );
    let restarts = summary.restarts.split(' ').next().unwrap_or_default();
    match restarts {
        "0" => {}
        "1" => line.push_str(", restarted once"),
        n => line.push_str(&format!(", restarted {n} times")),
    }
    if summary.ip != "<none>" {
        line.push_str(&format!(", {}", summary.ip));
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_keeps_a_container_from_starting_is_told_and_what_passes_is_not() {
        let waiting = |name: &str, reason: &str, message: &str| {
            json!({ "name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": { "waiting": { "reason": reason, "message": message } },
                "lastState": { "terminated": { "exitCode": 128, "reason": "StartError", "message": "no /x" } } })
        };
        let pod = serde_json::from_value(json!({ "metadata": { "name": "p" }, "status": {
            "initContainerStatuses": [waiting("i", "CreateContainerConfigError", "no ConfigMap c")],
            "containerStatuses": [
                waiting("a", "PodInitializing", "soon"),
                waiting("b", "ErrImageNeverPull", "image b is not here"),
                waiting("c", "CrashLoopBackOff", "back-off 10s"),
            ],
        }}))
        .expect("a pod");
        assert_eq!(
            troubles(&pod, "p"),
            [
                "pod p, container i: no ConfigMap c",
                "pod p, container b: image b is not here",
                "pod p, container c: no /x",
            ]
        );
    }
}
