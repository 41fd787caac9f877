//! `ps`: the processes of a container, as numbers or as ps(1) shows them.

use std::process::Command;

use serde_json::json;

use super::container_cgroup::{attempt, of};
use super::error::{Error, Result, file};
use super::list::Format;
use super::print;
use super::store::Store;

/// Options of `ps`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The container's name
    pub id: String,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
    /// Let ps(1) print with these options, the container's processes only
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub ps_options: Vec<String>,
}

/// Prints the pids in the caller's pid namespace.
pub(super) fn ps(store: &Store, options: &Options) -> Result<()> {
    let record = store.entry(&options.id)?.load()?;
    let pids = of(&record)?
        .processes()
        .map_err(attempt("look at", &record))?;
    match options.format {
        Format::Json => print::json(&json!(pids)),
        Format::Table if options.ps_options.is_empty() => {
            let lines = std::iter::once("PID".to_owned()).chain(pids.iter().map(i32::to_string));
            print::line(&lines.collect::<Vec<_>>().join("\n"))
        }
        Format::Table => {
            let output = Command::new("ps")
                .args(&options.ps_options)
                .output()
                .map_err(file("run", "ps"))?;
            if !output.status.success() {
                return Err(argument(String::from_utf8_lossy(&output.stderr).trim()));
            }
            let text = String::from_utf8_lossy(&output.stdout);
            let lines = only(&text, &pids)
                .ok_or_else(|| argument("ps does not print the column PID with these options"))?;
            print::line(&lines)
        }
    }
}

fn argument(reason: &str) -> Error {
    Error::Argument {
        argument: "ps options",
        reason: reason.to_owned(),
    }
}

/// The heading and the lines of these processes; none without a column for the pid.
fn only(text: &str, pids: &[i32]) -> Option<String> {
    let heading = text.lines().next()?;
    let column = heading.split_whitespace().position(|name| name == "PID")?;
    let is_one = |line: &&str| {
        let pid = line.split_whitespace().nth(column);
        pid.and_then(|pid| pid.parse().ok())
            .is_some_and(|pid| pids.contains(&pid))
    };
    let lines = std::iter::once(heading).chain(text.lines().skip(1).filter(is_one));
    Some(lines.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_processes_are_shown() {
        let text = "UID   PID CMD\nroot    1 init 7\nroot    7 sleep\n";
        assert_eq!(
            only(text, &[7]).as_deref(),
            Some("UID   PID CMD\nroot    7 sleep")
        );
        assert_eq!(only("CMD\nsleep\n", &[7]), None);
    }
}
