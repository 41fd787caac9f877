//! Writes `layout/hot.ld`: which functions `podling-runtime run` executes, for the linker to put them side by side.
//!
//! ```text
//! make layout       builds the program with its symbols, runs this as root, and replaces hot.ld
//! ```
//!
//! It follows `run` and its children one instruction at a time, until these execute another program, and looks up in
//! the table of symbols (nm(1)) what they came by. There are two bundles, one as `spec` writes it and one as engines do;
//! all happens in a mount namespace of its own.

mod bundle;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::ptrace::{self, AddressType, Event, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// `offsetof(struct user, regs.rip)` on x86-64 (sys/user.h).
const INSTRUCTION_POINTER: usize = 16 * 8;
/// What stands at the head of the file.
const HEAD: &str = "\
/* What `podling-runtime run` executes, side by side in the file: a page of it that is needed is mapped with its
 * neighbours (the kernel takes 16 pages at each fault), and scattered over all of the program that would be most of it.
 *
 * Written by `make layout` from a trace, and what it held before. Names are without their hashes, so that
 * they last: what is not there any more is left out by the linker, and what is new is merely found elsewhere.
 */
";

/// What earlier traces found stays: a function that one build has inlined stands by itself in another.
const BEFORE: &str = include_str!("../../layout/hot.ld");

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let program = std::env::args_os().nth(1).ok_or("usage: layout PROGRAM")?;
    let program = fs::canonicalize(program)?.into_os_string();
    let symbols = symbols(&program)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let dir = tempfile::tempdir()?;
    let mut addresses = HashSet::new();
    for bundle in [
        written_bundle(&program, dir.path())?,
        engines_bundle(dir.path())?,
    ] {
        let root = dir.path().join("state");
        let words: [&OsStr; 7] = [
            &program,
            "--root".as_ref(),
            root.as_ref(),
            "run".as_ref(),
            "--bundle".as_ref(),
            bundle.as_ref(),
            "layout".as_ref(),
        ];
        addresses.extend(trace(&words)?);
    }
    print(&symbols, &addresses)
}

/// A bundle as the command `spec` writes it, with a program that ends by itself.
fn written_bundle(program: &OsStr, dir: &Path) -> Result<PathBuf> {
    let bundle = dir.join("written");
    bundle::make(&bundle)?;
    let status = Command::new(program)
        .args(["spec", "--bundle"])
        .arg(&bundle)
        .status()?;
    if !status.success() {
        return Err(format!("spec: {status}").into());
    }
    let config = bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config)?)?;
    spec["process"]["args"] = ["/bin/true"].as_slice().into();
    spec["process"]["terminal"] = false.into();
    fs::write(&config, spec.to_string())?;
    Ok(bundle)
}

/// A bundle as engines write it.
fn engines_bundle(dir: &Path) -> Result<PathBuf> {
    let bundle = dir.join("engine");
    bundle::make(&bundle)?;
    let cgroup = format!("/podling-layout-{}", std::process::id());
    let spec = bundle::spec(&["/bin/true"], &cgroup);
    fs::write(bundle.join("config.json"), spec.to_string())?;
    Ok(bundle)
}

/// The addresses of all instructions that the program and its children execute.
fn trace(arguments: &[&OsStr]) -> Result<HashSet<u64>> {
    // A shell stops itself, to be followed from there on.
    let shell = Command::new("/bin/sh")
        .args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""])
        .args(arguments)
        .spawn()?;
    let first = Pid::from_raw(shell.id().cast_signed());
    waitpid(first, Some(WaitPidFlag::WUNTRACED))?;
    ptrace::attach(first)?;
    waitpid(first, None)?;
    ptrace::setoptions(
        first,
        Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEFORK,
    )?;
    nix::sys::signal::kill(first, Signal::SIGCONT)?;
    ptrace::step(first, None)?;
    let mut seen = HashSet::new();
    loop {
        let status = match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Err(nix::Error::ECHILD) => return Ok(seen),
            status => status?,
        };
        let (pid, signal) = match status {
            // The container's program.
            WaitStatus::PtraceEvent(pid, _, event)
                if event == Event::PTRACE_EVENT_EXEC as i32 && pid != first =>
            {
                ptrace::detach(pid, None)?;
                continue;
            }
            WaitStatus::PtraceEvent(pid, ..)
            | WaitStatus::Stopped(pid, Signal::SIGTRAP | Signal::SIGSTOP) => (pid, None),
            WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
            _ => continue,
        };
        let at = ptrace::read_user(pid, INSTRUCTION_POINTER as AddressType)?;
        seen.insert(at.cast_unsigned());
        ptrace::step(pid, signal)?;
    }
}

/// The program's functions, by address. Several names can be of one.
fn symbols(program: &OsString) -> Result<BTreeMap<u64, Vec<String>>> {
    let output = Command::new("nm")
        .arg("--defined-only")
        .arg(program)
        .output()?;
    let mut symbols: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let mut words = line.split_whitespace();
        if let (Some(address), Some("t" | "T" | "w" | "W" | "i"), Some(name)) =
            (words.next(), words.next(), words.next())
        {
            let address = u64::from_str_radix(address, 16)?;
            symbols.entry(address).or_default().push(name.to_owned());
        }
    }
    if symbols.is_empty() {
        return Err("the program has no symbols: build it with profile.release.strip=false".into());
    }
    Ok(symbols)
}

/// Where the linker finds a function of the C libraries: those have no sections of their own, so a member of an
/// archive counts as a whole.
fn members() -> Result<HashMap<String, String>> {
    let mut members = HashMap::new();
    for archive in ["libc.a", "libm-*.a", "libgcc_eh.a"] {
        let Some(path) = find_archive(archive)? else {
            continue;
        };
        let output = Command::new("nm")
            .args(["-A", "--defined-only"])
            .arg(path)
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in text.lines() {
            // `…/libc.a:malloc.o:0000000000001a00 T malloc`
            let mut fields = line.splitn(3, ':').skip(1);
            if let (Some(member), Some(rest)) = (fields.next(), fields.next())
                && let Some(name) = rest.split_whitespace().nth(2)
            {
                members
                    .entry(name.to_owned())
                    .or_insert_with(|| format!("*{archive}:{member}(.text .text.*)"));
            }
        }
    }
    Ok(members)
}

/// The file of an archive that the linker would take. `*` stands for a version.
fn find_archive(name: &str) -> Result<Option<PathBuf>> {
    let Some((start, end)) = name.split_once('*') else {
        let path = Command::new("cc")
            .arg(format!("-print-file-name={name}"))
            .output()?;
        return Ok(Some(String::from_utf8(path.stdout)?.trim().into()));
    };
    let libc = find_archive("libc.a")?.ok_or("no libc.a")?;
    let directory = libc.parent().ok_or("libc.a has no directory")?;
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with(start) && name.ends_with(end)) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn print(symbols: &BTreeMap<u64, Vec<String>>, addresses: &HashSet<u64>) -> Result<()> {
    let members = members()?;
    let kept = BEFORE.lines().filter_map(|line| line.strip_prefix("    "));
    let mut inputs: BTreeSet<String> = kept.map(str::to_owned).collect();
    for address in addresses {
        let Some((_, names)) = symbols.range(..=address).next_back() else {
            continue;
        };
        for name in names {
            inputs.insert(match (pattern(name), members.get(name)) {
                (Some(pattern), _) => format!("*(.text.{pattern} .text.unlikely.{pattern})"),
                (None, Some(member)) => member.clone(),
                // Ours, with the name that the C library or the kernel calls.
                (None, None) => format!("*(.text.{name})"),
            });
        }
    }
    print!("{HEAD}SECTIONS {{\n  .text.hot : {{\n");
    for input in inputs {
        println!("    {input}");
    }
    println!("  }}\n}}\nINSERT BEFORE .text;");
    Ok(())
}

/// A Rust function's name without what changes from build to build: the hashes of its crates.
fn pattern(name: &str) -> Option<String> {
    let name = name.strip_prefix("_R")?;
    let name = name.split(".llvm.").next().unwrap_or(name);
    let mut parts = name.split("Cs");
    let mut pattern = format!("_R{}", parts.next().unwrap_or_default());
    for part in parts {
        // `Cs<hash>_<length><crate>`
        pattern.push_str("Cs*_");
        pattern.push_str(part.split_once('_').map_or("", |(_, rest)| rest));
    }
    pattern.push('*');
    Some(pattern)
}
