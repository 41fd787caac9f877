//! What `exec` runs: the container's own process with changes, or one from a file.

use std::collections::HashSet;
use std::str::FromStr;

use oci_spec::runtime::{Capability, LinuxCapabilities, Process, Spec, User};

use super::super::create::compile_filter;
use super::super::error::{Error, Result, file};
use super::super::input;
use super::Options;
use crate::container::config;
use crate::seccomp;

/// The process to run and its filter: the file's, or the container's own with changes.
pub(super) fn plan(spec: &Spec, options: &Options) -> Result<(Process, Option<seccomp::Filter>)> {
    let mut process = match &options.process {
        Some(path) => {
            let text = input::read_file(path).map_err(file("read", path))?;
            let process = config::parse_process(&text).map_err(|source| Error::Config {
                path: path.clone(),
                source,
            })?;
            confined_as(spec, process)
        }
        None => {
            if options.command.is_empty() {
                return Err(argument("COMMAND", "a program or --process must be given"));
            }
            let mut process = spec.process().clone().unwrap_or_default();
            process.set_terminal(Some(false)).set_console_size(None);
            change(&mut process, options)?;
            process
        }
    };
    if options.tty {
        process.set_terminal(Some(true));
    }
    if let Some(profile) = &options.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = &options.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if options.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if process.terminal().unwrap_or(false) && options.detach && options.console_socket.is_none() {
        return Err(argument(
            "--console-socket",
            "a detached process with a terminal needs one",
        ));
    }
    Ok((process, compile_filter(spec)?))
}

/// A process of a file that names no profile or label has the container's: one that is confined stays so.
fn confined_as(spec: &Spec, mut process: Process) -> Process {
    let is_given = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    if let Some(own) = spec.process() {
        if !is_given(process.apparmor_profile()) {
            process.set_apparmor_profile(own.apparmor_profile().clone());
        }
        if !is_given(process.selinux_label()) {
            process.set_selinux_label(own.selinux_label().clone());
        }
    }
    process
}

/// Applies the command line to the container's own process.
fn change(process: &mut Process, options: &Options) -> Result<()> {
    process.set_args(Some(options.command.clone()));
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(options.env.iter().cloned());
    process.set_env(Some(env));
    if let Some(cwd) = &options.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some(user) = &options.user {
        let (uid, gid) = parse_user(user)?;
        let mut user = User::default();
        user.set_uid(uid).set_gid(gid);
        process.set_user(user);
    }
    if !options.additional_gids.is_empty() {
        let mut user = process.user().clone();
        user.set_additional_gids(Some(options.additional_gids.clone()));
        process.set_user(user);
    }
    if !options.cap.is_empty() {
        let added = options
            .cap
            .iter()
            .map(|name| parse_capability(name))
            .collect::<Result<HashSet<_>>>()?;
        process.set_capabilities(Some(with_capabilities(
            process.capabilities().clone(),
            &added,
        )));
    }
    Ok(())
}

fn with_capabilities(
    sets: Option<LinuxCapabilities>,
    added: &HashSet<Capability>,
) -> LinuxCapabilities {
    let mut sets = sets.unwrap_or_default();
    let with = |set: &Option<HashSet<Capability>>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend(added);
        Some(set)
    };
    let (bounding, effective, permitted) = (
        with(sets.bounding()),
        with(sets.effective()),
        with(sets.permitted()),
    );
    // As with runc; the kernel has no ambient capability that is not inheritable (capabilities(7)).
    let inheritable = sets.inheritable().clone().unwrap_or_default();
    let ambient: HashSet<Capability> = added.intersection(&inheritable).copied().collect();
    if !ambient.is_empty() {
        let mut all = sets.ambient().clone().unwrap_or_default();
        all.extend(ambient);
        sets.set_ambient(Some(all));
    }
    sets.set_bounding(bounding)
        .set_effective(effective)
        .set_permitted(permitted);
    sets
}

fn parse_user(text: &str) -> Result<(u32, u32)> {
    let number = |text: &str| {
        text.parse()
            .map_err(|_| argument("--user", "must be UID or UID:GID, in numbers"))
    };
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, number(gid)?)),
        None => Ok((number(text)?, 0)),
    }
}

fn parse_capability(name: &str) -> Result<Capability> {
    let upper = name.to_ascii_uppercase();
    Capability::from_str(upper.strip_prefix("CAP_").unwrap_or(&upper))
        .map_err(|_| argument("--cap", &format!("{name:?} is not a capability")))
}

fn argument(argument: &'static str, reason: &str) -> Error {
    Error::Argument {
        argument,
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_a_file_is_confined_as_the_container() {
        let mut spec = Spec::default();
        let mut own = Process::default();
        own.set_apparmor_profile(Some("a".to_owned()))
            .set_selinux_label(Some("u:r:t:s0".to_owned()));
        spec.set_process(Some(own.clone()));
        let given = confined_as(&spec, Process::default());
        assert_eq!(given.apparmor_profile(), own.apparmor_profile());
        assert_eq!(given.selinux_label(), own.selinux_label());
        let mut other = Process::default();
        other.set_apparmor_profile(Some("b".to_owned()));
        let given = confined_as(&spec, other);
        assert_eq!(given.apparmor_profile().as_deref(), Some("b"));
    }

    #[test]
    fn users_are_numbers() {
        assert_eq!(parse_user("7").expect("a user"), (7, 0));
        assert_eq!(parse_user("7:8").expect("a user"), (7, 8));
        assert!(parse_user("root").is_err());
    }

    #[test]
    fn an_added_capability_that_is_inheritable_is_ambient_too() {
        let mut own = LinuxCapabilities::default();
        own.set_inheritable(Some(HashSet::from([Capability::Syslog])))
            .set_ambient(Some(HashSet::from([Capability::Chown])));
        let added = HashSet::from([Capability::Syslog, Capability::Kill]);
        let sets = with_capabilities(Some(own), &added);
        let ambient = HashSet::from([Capability::Chown, Capability::Syslog]);
        assert_eq!(sets.ambient().as_ref(), Some(&ambient));
        assert!(added.is_subset(sets.permitted().as_ref().expect("permitted")));
        let none = with_capabilities(None, &added);
        assert_eq!(none.ambient(), LinuxCapabilities::default().ambient());
    }

    #[test]
    fn capabilities_have_two_spellings() {
        assert_eq!(parse_capability("CAP_KILL").expect("one"), Capability::Kill);
        assert_eq!(
            parse_capability("net_raw").expect("one"),
            Capability::NetRaw
        );
        assert!(parse_capability("CAP_FLY").is_err());
    }
}
