//! What `podling run` shows: a live table on a terminal, else a line for each change.

use std::collections::BTreeMap;
use std::io::{self, Write};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::super::log::Tail;
use super::super::status::render_problem;
use super::super::summary::{Columns, Summary};
use crate::api::ProblemView;

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
}

impl Plain {
    pub(super) fn new(quiet: bool) -> Self {
        Self {
            quiet,
            shown: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    fn print(&mut self, pods: &[Pod], problems: &[ProblemView]) -> io::Result<()> {
        let now = Timestamp::now();
        let mut gone = std::mem::take(&mut self.shown);
        for pod in pods {
            let summary = Summary::of(pod, now);
            let name = label(&summary);
            let line = change(&name, &summary);
            let before = gone.remove(&name);
            if !self.quiet && before.as_ref() != Some(&line) {
                say(&line)?;
            }
            self.shown.insert(name, line);
        }
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
