//! Writes `layout/hot.ld` of a program: which of its functions are executed in ordinary use, for the linker to put them
//! side by side.
//!
//! ```text
//! make layout       builds the programs with their symbols, runs this as root for each, and replaces the files
//! ```
//!
//! It runs the program with a breakpoint at each function ([`trace`]), and looks up in the table of symbols (readelf(1))
//! which were met. All happens in a mount and a network namespace of its own.

mod bundle;
mod node;
mod trace;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// What stands at the head of the file, after what is executed.
const HEAD: &str = "\
, side by side in the file: a page of it that is needed is mapped with its
 * neighbours (the kernel takes 16 pages at each fault), and scattered over all of the program that would be most of it.
 *
 * Written by `make layout` from a trace, and what it held before. Names are without their hashes, so that
 * they last: what is not there any more is left out by the linker, and what is new is merely found elsewhere.
 */
";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [program, file] = words.as_slice() else {
        return Err("usage: layout PROGRAM HOT.LD".into());
    };
    let program = fs::canonicalize(program)?;
    let symbols = symbols(&program)?;
    // What earlier traces found stays: a function that one build has inlined stands by itself in another.
    let before = fs::read_to_string(file).unwrap_or_default();
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let dir = tempfile::tempdir()?;
    let functions: BTreeSet<u64> = symbols.keys().copied().collect();
    let is_node = program.file_name() == Some(OsStr::new("podling"));
    let (what, entered) = if is_node {
        ("a node", node::entered(&program, dir.path(), &functions)?)
    } else {
        (
            "`podling-runtime run`",
            run(&program, dir.path(), &functions)?,
        )
    };
    let script = script(what, &before, &symbols, &entered)?;
    Ok(fs::write(file, script)?)
}

/// What `podling-runtime run` enters.
fn run(program: &Path, dir: &Path, functions: &BTreeSet<u64>) -> Result<BTreeSet<u64>> {
    let mut entered = BTreeSet::new();
    for bundle in [written_bundle(program, dir)?, engines_bundle(dir)?] {
        let root = dir.join("state");
        let words: [&OsStr; 7] = [
            program.as_ref(),
            "--root".as_ref(),
            root.as_ref(),
            "run".as_ref(),
            "--bundle".as_ref(),
            bundle.as_ref(),
            "layout".as_ref(),
        ];
        entered.extend(trace::entered(&words, functions, |_| {})?);
    }
    Ok(entered)
}

/// A bundle as the command `spec` writes it, with a program that ends by itself.
fn written_bundle(program: &Path, dir: &Path) -> Result<PathBuf> {
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

/// The program's functions, by address. Several names can be of one.
fn symbols(program: &Path) -> Result<BTreeMap<u64, Vec<String>>> {
    let output = Command::new("readelf")
        .args(["--symbols", "--wide"])
        .arg(program)
        .output()?;
    let mut symbols: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        // `   123: 0000000000401000    42 FUNC    LOCAL  DEFAULT   12 name`
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [_, address, _, "FUNC" | "IFUNC", _, _, section, name] = words[..]
            && section != "UND"
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

/// The linker's script.
fn script(
    what: &str,
    before: &str,
    symbols: &BTreeMap<u64, Vec<String>>,
    entered: &BTreeSet<u64>,
) -> Result<String> {
    let members = members()?;
    let kept = before.lines().filter_map(|line| line.strip_prefix("    "));
    let mut inputs: BTreeSet<String> = kept.map(str::to_owned).collect();
    for name in entered.iter().flat_map(|address| &symbols[address]) {
        inputs.insert(match (pattern(name), members.get(name)) {
            (Some(pattern), _) => format!("*(.text.{pattern} .text.unlikely.{pattern})"),
            (None, Some(member)) => member.clone(),
            // Ours, with the name that the C library or the kernel calls.
            (None, None) => format!("*(.text.{name})"),
        });
    }
    let mut script = format!("/* What {what} executes{HEAD}SECTIONS {{\n  .text.hot : {{\n");
    for input in inputs {
        script += &format!("    {input}\n");
    }
    script += "  }\n}\nINSERT BEFORE .text;\n";
    Ok(script)
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
