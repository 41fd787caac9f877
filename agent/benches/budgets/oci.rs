//! OCI runtimes on one bundle: `podling-runtime` beside crun and runc, interleaved so that all see the same weather.
//!
//! The first crun and runc on the PATH have those names; further ones, as newer versions in another directory, have
//! their directory added. The floor ([`crate::floor`]) stands among the peers of `run`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use crate::floor::FLOOR;
use crate::machine::hide_hybrid_cgroup;
use crate::node::bin_dir;
use crate::table::{Budget, Samples, Table};
use crate::{Effort, bundle};

/// The pause before a start on an idle machine: long enough for the kernel's cgroup locks to leave their fast state.
const IDLE: Duration = Duration::from_millis(150);
/// The steps of a container's life that are timed.
const STEPS: [&str; 6] = ["create", "start", "state", "exec", "kill", "delete"];
/// How long a container may take to run, on a machine that is busy with other things.
const STARTED_WITHIN: Duration = Duration::from_secs(10);
/// What the default seccomp profile may add to `run`, in milliseconds.
const SECCOMP_MAX_MS: f64 = 1.0;
/// What `run` may need at its peak, in KiB, and how many system calls it may make.
const MEMORY_MAX_KIB: f64 = 2048.0;
const CALLS_MAX: f64 = 400.0;

/// The runtimes' state directories, in memory as `/run` is.
struct States(PathBuf);

impl States {
    fn mount(dir: &Path) -> States {
        let states = dir.join("states");
        fs::create_dir(&states).unwrap();
        let kind = Some("tmpfs");
        mount(kind, &states, kind, MsFlags::empty(), None::<&str>).unwrap();
        States(states)
    }
}

impl Drop for States {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// A row's figures, by runtime.
type Row = BTreeMap<String, Samples>;

struct Runtime {
    name: String,
    program: PathBuf,
    root: PathBuf,
    bundle: PathBuf,
}

pub(crate) fn measure(effort: Effort, table: &mut Table) {
    let worker = thread::spawn(move || {
        let mut part = Table::default();
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("this needs root");
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
        if hide_hybrid_cgroup() {
            part.note(
                "OCI: the unified cgroup mount is hidden, since crun refuses hybrid machines",
            );
        }
        run(effort, &mut part);
        part
    });
    table.append(worker.join().unwrap());
}

fn run(effort: Effort, table: &mut Table) {
    let dir = tempfile::Builder::new()
        .prefix("podling-bench-")
        .tempdir()
        .unwrap();
    let states = States::mount(dir.path());
    let mut runtimes = Vec::new();
    let own = std::env::var_os("PODLING_RUNTIME")
        .map_or_else(|| bin_dir().join("podling-runtime"), PathBuf::from);
    for (name, program) in std::iter::once(("podling".to_string(), own)).chain(peers()) {
        let runtime = Runtime::new(&name, program, dir.path(), &states.0);
        match runtime.run_once() {
            Ok(_) => runtimes.push(runtime),
            Err(error) => table.note(&format!("OCI: {name} does not run here: {error}")),
        }
    }
    if !runtimes.iter().any(|runtime| runtime.name == "podling") {
        return;
    }
    let (warm, idle) = (Duration::ZERO, IDLE);
    for (what, pause, budget) in [
        ("run `true`, warm", warm, 0.5),
        ("run `true`, after 150 ms idle", idle, 0.25),
    ] {
        let mut samples = Row::new();
        for _ in 0..effort.runs {
            for runtime in &runtimes {
                thread::sleep(pause);
                match runtime.run_once() {
                    Ok(duration) => samples
                        .entry(runtime.name.clone())
                        .or_default()
                        .push(duration),
                    Err(error) => table.note(&format!("OCI: {} failed: {error}", runtime.name)),
                }
            }
            thread::sleep(pause);
            match floor(&runtimes[0].bundle) {
                Ok(duration) => samples.entry("floor".into()).or_default().push(duration),
                Err(error) => table.note(&format!("OCI: no floor: {error}")),
            }
        }
        show(table, &format!("OCI {what}"), &samples, budget);
    }
    show_seccomp(effort, &runtimes, table);
    show_cost(&runtimes, table);
    let mut steps: BTreeMap<&str, Row> = BTreeMap::new();
    for _ in 0..effort.runs {
        for runtime in &runtimes {
            match runtime.life() {
                Ok(durations) => {
                    for (step, duration) in STEPS.iter().zip(durations) {
                        steps
                            .entry(step)
                            .or_default()
                            .entry(runtime.name.clone())
                            .or_default()
                            .push(duration);
                    }
                }
                Err(error) => table.note(&format!("OCI: {} failed: {error}", runtime.name)),
            }
        }
    }
    for step in STEPS {
        if let Some(samples) = steps.get(step) {
            show(table, &format!("OCI {step}"), samples, 0.5);
        }
    }
}

/// A row with all peers; the budget is against crun.
fn show(table: &mut Table, what: &str, samples: &Row, budget: f64) {
    let figures: BTreeMap<String, f64> = samples
        .iter()
        .filter_map(|(name, samples)| Some((name.clone(), samples.median_ms()?)))
        .collect();
    let peers = others(&figures);
    if let Some(&own) = figures.get("podling") {
        let budget = if samples.contains_key("crun") {
            Budget::Ratio(budget)
        } else {
            Budget::None
        };
        table.row(what, own, "ms", &peers, budget);
    }
}

/// All figures but our own, crun's first.
fn others(figures: &BTreeMap<String, f64>) -> Vec<(&str, f64)> {
    figures
        .iter()
        .filter(|(name, _)| *name != "podling")
        .map(|(name, figure)| (name.as_str(), *figure))
        .collect()
}

/// The runtimes on the PATH.
fn peers() -> Vec<(String, PathBuf)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for program in ["crun", "runc", "youki"] {
        let mut seen = Vec::new();
        for directory in std::env::split_paths(&path) {
            let Ok(file) = fs::canonicalize(directory.join(program)) else {
                continue;
            };
            if seen.contains(&file) {
                continue;
            }
            let name = match seen.is_empty() {
                true => program.to_string(),
                false => format!("{program} of {}", directory.display()),
            };
            found.push((name, file.clone()));
            seen.push(file);
        }
    }
    found
}

/// The bare system calls, in a process of their own as a runtime is.
fn floor(bundle: &Path) -> Result<Duration, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let start = Instant::now();
    let status = Command::new(own)
        .env(FLOOR, bundle)
        .stdin(Stdio::null())
        .status()
        .map_err(|error| error.to_string())?;
    match status.success() {
        true => Ok(start.elapsed()),
        false => Err(status.to_string()),
    }
}

/// What the default seccomp profile adds to `run`. The first run of each, which compiles, does not count.
fn show_seccomp(effort: Effort, runtimes: &[Runtime], table: &mut Table) {
    let mut plain = Row::new();
    let mut filtered = Row::new();
    for runtime in runtimes {
        if let Err(error) = runtime.run_filtered() {
            table.note(&format!("OCI: {} with seccomp: {error}", runtime.name));
        }
    }
    for _ in 0..effort.runs {
        for runtime in runtimes {
            if let (Ok(without), Ok(with)) = (runtime.run_once(), runtime.run_filtered()) {
                plain.entry(runtime.name.clone()).or_default().push(without);
                filtered.entry(runtime.name.clone()).or_default().push(with);
            }
        }
    }
    let added: BTreeMap<String, f64> = filtered
        .iter()
        .filter_map(|(name, with)| {
            let without = plain.get(name)?.median_ms()?;
            Some((name.clone(), with.median_ms()? - without))
        })
        .collect();
    if let Some(&own) = added.get("podling") {
        let what = "OCI run: added by the default seccomp profile";
        table.row(
            what,
            own,
            "ms",
            &others(&added),
            Budget::Absolute(SECCOMP_MAX_MS),
        );
    }
}

/// Peak memory and system calls of one `run`, which do not vary.
fn show_cost(runtimes: &[Runtime], table: &mut Table) {
    let of = |measure: fn(&Runtime) -> Option<f64>| -> BTreeMap<String, f64> {
        runtimes
            .iter()
            .filter_map(|runtime| Some((runtime.name.clone(), measure(runtime)?)))
            .collect()
    };
    for (what, unit, figures, budget) in [
        (
            "OCI run: peak memory",
            "KiB",
            of(Runtime::peak_kib),
            MEMORY_MAX_KIB,
        ),
        (
            "OCI run: system calls",
            "",
            of(Runtime::system_calls),
            CALLS_MAX,
        ),
    ] {
        match figures.get("podling") {
            Some(&own) => table.row(what, own, unit, &others(&figures), Budget::Absolute(budget)),
            None => table.note(&format!("{what}: not measured (strace is needed)")),
        }
    }
}

impl Runtime {
    fn new(name: &str, program: PathBuf, dir: &Path, states: &Path) -> Runtime {
        let bundle = dir.join(name.replace(['/', ' '], "-"));
        bundle::make(&bundle).expect("Debian's busybox-static");
        Runtime {
            name: name.to_string(),
            program,
            root: states.join(bundle.file_name().unwrap_or_default()),
            bundle,
        }
    }

    /// Its directory below the bench's own in each hierarchy.
    fn cgroup(&self) -> PathBuf {
        let name = self.bundle.file_name().unwrap_or_default();
        PathBuf::from(format!("podling-bench-{}", std::process::id())).join(name)
    }

    fn spec(&self, arguments: &[&str]) -> Value {
        bundle::spec(arguments, &format!("/{}", self.cgroup().display()))
    }

    fn write_spec(&self, spec: &Value) {
        fs::write(self.bundle.join("config.json"), spec.to_string()).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Result<Duration, String> {
        let log = self.bundle.join("stderr");
        let mut command = Command::new(&self.program);
        command
            .arg("--root")
            .arg(&self.root)
            .args(arguments)
            .current_dir(&self.bundle);
        // A file, since a pipe would stay open for as long as the container runs.
        let stderr = fs::File::create(&log).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        let start = Instant::now();
        let status = command.status().map_err(|error| error.to_string())?;
        let duration = start.elapsed();
        if status.success() {
            return Ok(duration);
        }
        let text = fs::read_to_string(&log).unwrap_or_default();
        Err(format!(
            "{}: {status}: {}",
            arguments.join(" "),
            text.lines().next_back().unwrap_or_default()
        ))
    }

    /// A container that does nothing, from its making to its removal.
    fn run_once(&self) -> Result<Duration, String> {
        self.run_spec(&self.spec(&["/bin/true"]))
    }

    /// The same with Podling's default seccomp profile.
    fn run_filtered(&self) -> Result<Duration, String> {
        let mut spec = self.spec(&["/bin/true"]);
        let profile = podling_runtime::seccomp::default_profile(&Default::default());
        spec["linux"]["seccomp"] = serde_json::to_value(profile).unwrap();
        self.run_spec(&spec)
    }

    fn run_spec(&self, spec: &Value) -> Result<Duration, String> {
        self.write_spec(spec);
        self.command(&["run", "bench"])
            .inspect_err(|_| drop(self.command(&["delete", "-f", "bench"])))
    }

    /// The most memory that the runtime had at a time while it made a container and waits for it, in KiB, pages of its
    /// file among it.
    fn peak_kib(&self) -> Option<f64> {
        self.write_spec(&self.spec(&["/bin/sleep", "864000"]));
        let mut waiting = self.quiet(Command::new(&self.program)).spawn().ok()?;
        let start = Instant::now();
        let mut peak = None;
        while peak.is_none() && start.elapsed() < STARTED_WITHIN {
            thread::sleep(Duration::from_millis(10));
            if self.is_running() {
                let status = fs::read_to_string(format!("/proc/{}/status", waiting.id())).ok()?;
                let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
                peak = line.and_then(|l| l.trim().strip_suffix(" kB")?.parse().ok());
            }
        }
        drop(self.command(&["delete", "-f", "bench"]));
        drop(waiting.wait());
        peak
    }

    fn is_running(&self) -> bool {
        let state = Command::new(&self.program)
            .arg("--root")
            .arg(&self.root)
            .args(["state", "bench"])
            .stderr(Stdio::null())
            .output();
        state.is_ok_and(|state| String::from_utf8_lossy(&state.stdout).contains("\"running\""))
    }

    /// The system calls of all processes of one `run`.
    fn system_calls(&self) -> Option<f64> {
        self.write_spec(&self.spec(&["/bin/true"]));
        let summary = self.bundle.join("strace");
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-o"]).arg(&summary);
        command.arg(&self.program);
        let status = self.quiet(command).status().ok()?;
        let summary = fs::read_to_string(summary).ok()?;
        let total = summary.lines().last().filter(|_| status.success())?;
        total.split_whitespace().nth(3)?.parse().ok()
    }

    /// `run` without a word.
    fn quiet(&self, mut command: Command) -> Command {
        command
            .arg("--root")
            .arg(&self.root)
            .args(["run", "bench"])
            .current_dir(&self.bundle)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// A container's life, step by step.
    fn life(&self) -> Result<Vec<Duration>, String> {
        self.write_spec(&self.spec(&["/bin/sleep", "864000"]));
        let mut durations = Vec::new();
        for step in STEPS {
            let arguments: &[&str] = match step {
                "exec" => &["exec", "bench", "/bin/true"],
                "kill" => &["kill", "bench", "KILL"],
                "delete" => {
                    thread::sleep(Duration::from_millis(20));
                    &["delete", "bench"]
                }
                step => &[step, "bench"],
            };
            let done = self
                .command(arguments)
                .inspect_err(|_| drop(self.command(&["delete", "-f", "bench"])))?;
            durations.push(done);
        }
        Ok(durations)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let hierarchies = fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        for root in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let directory = root.join(self.cgroup());
            drop(fs::remove_dir(&directory));
            drop(directory.parent().map(fs::remove_dir));
        }
    }
}
