//! `podling demo`: the one program of the built-in demo image. It serves, writes, sleeps, fails and asks, which is
//! what the examples and the tests need of a container. Plain threads, nothing of the agent.

mod fetch;
mod serve;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use clap::{Args, Subcommand};
use nix::sys::signal::{SigSet, Signal};

use super::name::parse_duration;
use super::{CommandError, Exit};

/// What the containers of the built-in demo image can do
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "The image is podling.local/demo:latest; a container's `args` go here."
)]
pub struct DemoArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: DemoCommand,
}

/// What a demo container can do.
#[derive(Debug, Subcommand)]
pub enum DemoCommand {
    /// Serve HTTP: / /healthz /readyz /ready/on|off /health/on|off /crash /fill-memory /env /hostname /files/PATH
    Serve {
        /// The port to listen on
        #[arg(long, default_value_t = 8080)]
        port: u16,
        /// Serve these files below /files/, and its index.html as /
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Answer /healthz and /readyz with 503 for this long after the start
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        slow_start: Option<Duration>,
    },
    /// Write the time into a file, again and again
    Write {
        /// The file
        file: PathBuf,
        /// How often; once if not given
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        every: Option<Duration>,
        /// What to write instead of a small page with the time
        #[arg(long)]
        text: Option<String>,
    },
    /// Print a file, and again whenever it changes
    Show {
        /// The file
        file: PathBuf,
        /// How often to look
        #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1s")]
        every: Duration,
    },
    /// Wait until told to stop
    Sleep {
        /// Only this long
        #[arg(value_parser = parse_duration)]
        time: Option<Duration>,
    },
    /// End with an exit code
    Exit {
        /// The code
        code: u8,
        /// Wait this long first
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        after: Option<Duration>,
        /// Succeed from this attempt on; attempts are counted in --state
        #[arg(long, value_name = "N", requires = "state")]
        succeed_after_attempts: Option<u32>,
        /// The file that counts the attempts
        #[arg(long, value_name = "FILE")]
        state: Option<PathBuf>,
    },
    /// Fetch a URL and print it; fails unless the status is 200 to 399
    Get {
        /// http://HOST:PORT/PATH
        url: String,
        /// Give up after this long
        #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "5s")]
        timeout: Duration,
    },
    /// Succeed if a file exists
    Check {
        /// The file
        file: PathBuf,
    },
}

pub(super) fn run(args: DemoArgs) -> Result<Exit, CommandError> {
    end_on_signals()?;
    match args.command {
        DemoCommand::Serve {
            port,
            dir,
            slow_start,
        } => serve::serve(port, dir, slow_start.unwrap_or_default()),
        DemoCommand::Write { file, every, text } => write(&file, every, text.as_deref()),
        DemoCommand::Show { file, every } => show(&file, every),
        DemoCommand::Sleep { time } => {
            sleep(time);
            Ok(Exit::Done)
        }
        DemoCommand::Exit {
            code,
            after,
            succeed_after_attempts,
            state,
        } => {
            thread::sleep(after.unwrap_or_default());
            match (succeed_after_attempts, state) {
                (Some(needed), Some(state)) => attempt(&state, needed, code),
                _ => {
                    say(&format!("ending with code {code}"))?;
                    Ok(Exit::Code(code))
                }
            }
        }
        DemoCommand::Get { url, timeout } => fetch::get(&url, timeout),
        DemoCommand::Check { file } => {
            if file.exists() {
                Ok(Exit::Done)
            } else {
                Err(CommandError::new(format!(
                    "{} does not exist",
                    file.display()
                )))
            }
        }
    }
}

/// Ends the process on SIGTERM and SIGINT. The kernel delivers a signal to pid 1 only if pid 1 asks for it, so a
/// container whose first process does not is only ever killed, after its whole grace period.
fn end_on_signals() -> Result<(), CommandError> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    // Blocked here, before any other thread exists, they are blocked in all; only `wait` takes them.
    signals
        .thread_block()
        .map_err(|e| CommandError::new("cannot block signals").because(e))?;
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            // Nothing can be done if nobody reads: the end is what counts.
            drop(say(&format!("got {signal}, stopping")));
            std::process::exit(0);
        }
    });
    Ok(())
}

/// Prints a line at once, though standard output is a pipe.
fn say(line: &str) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|e| CommandError::new("cannot write to standard output").because(e))
}

fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => thread::sleep(time),
        // The signal thread ends the process.
        None => loop {
            thread::park();
        },
    }
}

/// Replaces `file` by a new version, again and again; a reader never sees half of one.
fn write(file: &Path, every: Option<Duration>, text: Option<&str>) -> Result<Exit, CommandError> {
    for version in 1_u64.. {
        let text = match text {
            Some(text) => format!("{text}\n"),
            None => format!(
                "<!doctype html><title>Podling</title><p>Version {version} of this page, written at {}.\n",
                jiff::Timestamp::now()
                    .round(jiff::Unit::Second)
                    .unwrap_or_default()
            ),
        };
        let mut new = file.as_os_str().to_owned();
        new.push(".new");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, file))
            .map_err(|e| {
                CommandError::new(format!("cannot write {}", file.display())).because(e)
            })?;
        say(&format!("wrote version {version} of {}", file.display()))?;
        match every {
            Some(time) => thread::sleep(time),
            None => break,
        }
    }
    Ok(Exit::Done)
}

/// Prints `file` now and whenever its text differs.
fn show(file: &Path, every: Duration) -> Result<Exit, CommandError> {
    let mut before = None;
    loop {
        let now = fs::read_to_string(file).map_err(|e| e.to_string());
        if before.as_ref() != Some(&now) {
            match &now {
                Ok(text) => say(&format!("{}: {}", file.display(), text.trim_end()))?,
                Err(e) => say(&format!("{}: {e}", file.display()))?,
            }
            before = Some(now);
        }
        thread::sleep(every);
    }
}

/// Counts this attempt in `state`, and succeeds once there were `needed`.
fn attempt(state: &Path, needed: u32, code: u8) -> Result<Exit, CommandError> {
    let before: u32 = match fs::read_to_string(state) {
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
        Err(e) => {
            return Err(CommandError::new(format!("cannot read {}", state.display())).because(e));
        }
    };
    let this = before.saturating_add(1);
    fs::write(state, this.to_string())
        .map_err(|e| CommandError::new(format!("cannot write {}", state.display())).because(e))?;
    if this >= needed {
        say(&format!("attempt {this} of {needed}: success"))?;
        Ok(Exit::Done)
    } else {
        say(&format!(
            "attempt {this} of {needed}: failing with code {code}"
        ))?;
        Ok(Exit::Code(code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_counted_over_processes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = dir.path().join("attempts");
        let ends: Vec<Exit> = (0..3)
            .map(|_| attempt(&state, 3, 7).expect("an attempt"))
            .collect();
        assert_eq!(ends, [Exit::Code(7), Exit::Code(7), Exit::Done]);
    }

    #[test]
    fn a_file_is_written_whole() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("index.html");
        write(&file, None, Some("hello")).expect("written");
        assert_eq!(fs::read_to_string(&file).expect("the file"), "hello\n");
    }
}
