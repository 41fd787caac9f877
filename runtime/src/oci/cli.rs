//! The command line, as container engines call it. Options have the names that runc and crun gave them; those of a
//! command are in its own module. Global options stand before the command, as with those two: were they allowed behind
//! it, the parser would copy each of them to each command, at a third of what a short command costs.

use std::ffi::OsString;
use std::mem;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::log::{Format, Log};
use super::{
    checkpoint, completion, create, delete, events, exec, features, kill, list, pause, ps, restore,
    rootless, run, spec, start, state, update,
};

/// What `--version` prints after the program's name: the lines that engines look for.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    format!(
        "version {}\ncommit: {}\nspec: {}",
        env!("CARGO_PKG_VERSION"),
        option_env!("PODLING_COMMIT").unwrap_or("unknown"),
        features::SPEC_VERSION
    )
});

/// Runs containers from OCI bundles.
#[derive(Debug, Parser)]
#[command(
    name = "podling-runtime",
    version = VERSION.as_str(),
    disable_version_flag = true,
    about,
    max_term_width = 100
)]
pub struct Cli {
    /// Where containers' state is kept [default: /run/podling-runtime, or $XDG_RUNTIME_DIR/podling-runtime
    /// for an ordinary user]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Write errors and warnings to this file too
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// How the log file's lines look
    #[arg(long, value_enum, default_value_t)]
    pub log_format: Format,
    /// Log what is done besides what fails
    #[arg(long)]
    pub debug: bool,
    /// Let systemd make cgroups; linux.cgroupsPath is SLICE:PREFIX:NAME then
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Who makes cgroups
    #[arg(long, value_enum, value_name = "MANAGER")]
    pub cgroup_manager: Option<CgroupManager>,
    /// Do without a cgroup where none may be made and no limit is asked for
    #[arg(long, value_enum, value_name = "WHETHER", default_value_t)]
    pub rootless: rootless::Rootless,
    /// The criu program of checkpoint and restore
    #[arg(long, value_name = "PROGRAM", default_value = "criu")]
    pub criu: PathBuf,
    /// Print the version
    #[arg(short = 'v', long, short_alias = 'V', action = ArgAction::Version)]
    pub version: Option<bool>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// What a process's arguments say. Ends it with a message where they are wrong, and after `--help` or `--version`.
    pub fn of(arguments: &[OsString]) -> Self {
        let mut command = Self::command();
        let parsed = command
            .try_get_matches_from_mut(arguments)
            .and_then(|mut matches| Self::from_arg_matches_mut(&mut matches))
            .map_err(|error| error.format(&mut command));
        // A tree of many small parts, which the end of the process frees faster.
        mem::forget(command);
        parsed.unwrap_or_else(|error| {
            if error.use_stderr() {
                let text = error.to_string();
                let first = text.lines().next().unwrap_or_default();
                let message = first.strip_prefix("error: ").unwrap_or(first);
                Log::of_arguments(arguments).usage(message);
            }
            error.exit()
        })
    }

    /// Who makes cgroups: `--cgroup-manager` is crun's name for the choice, and wins.
    pub fn cgroup_manager(&self) -> CgroupManager {
        match (self.cgroup_manager, self.systemd_cgroup) {
            (Some(manager), _) => manager,
            (None, true) => CgroupManager::Systemd,
            (None, false) => CgroupManager::Cgroupfs,
        }
    }
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CgroupManager {
    /// This program
    Cgroupfs,
    /// systemd, as a scope of the container's own
    Systemd,
    /// Nobody: the container stays in the caller's cgroup, and limits are refused
    Disabled,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// Make a container, which waits for its start
    Create(create::Options),
    /// Start a container that was created
    Start(start::Options),
    /// Create and start a container, and wait for its end
    Run(run::Options),
    /// Print a container's state as JSON
    State(state::Options),
    /// Send a signal to a container's first process
    Kill(kill::Options),
    /// Remove a container that has ended
    Delete(delete::Options),
    /// Run another process in a container
    Exec(exec::Options),
    /// List containers
    List(list::Options),
    /// Show a container's processes
    Ps(ps::Options),
    /// Suspend all processes of a container
    Pause(pause::Options),
    /// Let a paused container go on
    Resume(pause::Options),
    /// Change a container's limits
    Update(update::Options),
    /// Print what a container uses, and when its memory runs out
    Events(events::Options),
    /// Save a container's processes to files, by criu
    Checkpoint(checkpoint::Options),
    /// Make a container of saved processes, by criu
    Restore(restore::Options),
    /// Write a bundle's config.json to start from
    Spec(spec::Options),
    /// Print what this runtime supports as JSON
    Features,
    /// Print a shell's completion script
    Completion(completion::Options),
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::path::Path;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_an_exec_command_are_its_own() {
        let cli =
            Cli::try_parse_from(["r", "exec", "-t", "id", "ls", "-t", "--root"]).expect("parses");
        let Command::Exec(exec) = cli.command else {
            panic!("another command")
        };
        assert!(exec.tty);
        assert_eq!(exec.command, ["ls", "-t", "--root"]);
    }

    /// As go-runc (containerd), conmon (podman, CRI-O) and buildah call it.
    #[test]
    fn what_engines_pass_is_understood() {
        let lines = [
            "--root /r --log /l --log-format json --systemd-cgroup create --bundle /b --pid-file /p id",
            "--log-format=json --log=/l create --no-new-keyring --bundle /b --console-socket /c --pid-file /p id",
            "create --no-pivot --preserve-fds 2 --bundle /b id",
            "--root=/r --rootless=true --cgroup-manager=cgroupfs run -b /b -d --pid-file=/p --keep id",
            "run --no-subreaper --config /c.json --bundle /b id",
            "start id",
            "state id",
            "kill --all id KILL",
            "kill id 15",
            "kill -r ^a.*$ 9",
            "delete --force id",
            "delete --regex a.*",
            "exec --process /p.json --console-socket /c --detach --pid-file /p id",
            "exec --pid-file /p --process /p.json --detach --tty id",
            "exec --cap CAP_KILL -c CAP_CHOWN -g 5 --additional-gids 6 -u 1:2 --cwd / -e A=b id true",
            "exec --apparmor a --process-label b --no-new-privs --cgroup sub --ignore-paused id true",
            "exec --preserve-fds 1 id true",
            "ps --format json id",
            "ps id -ef",
            "ps --format table id aux",
            "list --format=json",
            "list -q",
            "pause id",
            "resume id",
            "update --resources - id",
            "update --resources=/f id",
            "update --memory 1048576 --memory-swap -1 --cpu-quota -1 --cpu-period 100000 id",
            "update --cpu-share 512 --cpuset-cpus 0-1 --cpuset-mems 0 --pids-limit -1 --blkio-weight 10 id",
            "update --cpu-burst 1 --cpu-idle 1 --cpu-rt-period 1 --cpu-rt-runtime 1 id",
            "update --l3-cache-schema L3:0=f --mem-bw-schema MB:0=20 id",
            "update --kernel-memory 1 --kernel-memory-tcp 1 --memory-reservation 1 id",
            "events --stats id",
            "events --interval 5s id",
            "spec --rootless --bundle /b",
            "checkpoint --image-path /i --work-path /w --leave-running --file-locks id",
            "checkpoint --image-path /i --parent-path ../p --pre-dump --tcp-established id",
            "checkpoint --manage-cgroups-mode soft --empty-ns network --page-server 127.0.0.1:9 id",
            "restore -d --image-path /i --work-path /w --bundle /b --pid-file /p --console-socket /c id",
            "restore --lsm-profile apparmor:a --lsm-mount-context x --no-subreaper id",
            "restore --tcp-close --image-path /i id",
            "--criu /usr/sbin/criu restore id",
            "features",
        ];
        for line in lines {
            let words = std::iter::once("podling-runtime").chain(line.split(' '));
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn engines_put_global_options_first() {
        let line = "r --log-format=json --log /tmp/l --root /r create --bundle /b id";
        let cli = Cli::try_parse_from(line.split(' ')).expect("parses");
        assert_eq!(cli.root.as_deref(), Some(Path::new("/r")));
    }

    #[test]
    fn the_version_has_the_lines_that_engines_look_for() {
        let text = Cli::command().render_version();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("podling-runtime version "), "{text}");
        assert!(lines[1].starts_with("commit: "), "{text}");
        assert!(lines[2].starts_with("spec: 1."), "{text}");
    }

    #[test]
    fn the_cgroup_manager_has_two_names() {
        let manager = |line: &str| {
            let cli = Cli::try_parse_from(line.split(' ')).expect("parses");
            cli.cgroup_manager()
        };
        assert_eq!(manager("r list"), CgroupManager::Cgroupfs);
        assert_eq!(manager("r --systemd-cgroup list"), CgroupManager::Systemd);
        assert_eq!(
            manager("r --cgroup-manager systemd list"),
            CgroupManager::Systemd
        );
    }
}
