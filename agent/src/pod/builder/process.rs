//! The process of a container: who it is, what it runs, what it finds in its environment.

use std::str::FromStr;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use nix::sys::signal::Signal;
use oci_spec::runtime::{LinuxCapabilitiesBuilder, Process, ProcessBuilder, User, UserBuilder};
use podling_images::Image;

use super::{ContainerError, Input};
use crate::pod::env::{self, Variables};
use crate::pod::resources;
use crate::pod::security::Security;

/// What a program is looked for in when neither image nor manifest say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// glibc's first real-time signal; images name them relative to it.
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

pub(super) fn process(
    input: &Input<'_>,
    spec: &PodSpec,
    container: &Container,
    image: &Image,
    security: &Security,
    variables: &Variables,
) -> Result<Process, ContainerError> {
    let config = image.config.config().clone().unwrap_or_default();
    let tty = container.tty == Some(true);
    let score = resources::oom_score_adj(spec, container, &input.facts.capacity)?;
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(security.capabilities.clone())
        .effective(security.capabilities.clone())
        .permitted(security.capabilities.clone())
        .inheritable(std::collections::HashSet::new())
        .ambient(std::collections::HashSet::new())
        .build()?;
    let image_dir = config.working_dir().clone().filter(|dir| !dir.is_empty());
    let cwd = container
        .working_dir
        .clone()
        .filter(|dir| !dir.is_empty())
        .or(image_dir);
    let mut process = ProcessBuilder::default()
        .terminal(tty)
        .user(user(image, config.user().as_deref(), security)?)
        .args(args(
            container,
            config.entrypoint().as_deref(),
            config.cmd().as_deref(),
            variables,
        )?)
        .env(environment(input, tty, config.env().as_deref(), variables))
        .cwd(cwd.unwrap_or_else(|| "/".to_owned()))
        .capabilities(capabilities)
        .rlimits(Vec::new())
        .no_new_privileges(security.no_new_privileges)
        .oom_score_adj(score.max(input.min_oom_score_adj))
        .build()?;
    process.set_apparmor_profile(security.app_armor.clone());
    Ok(process)
}

/// `command` replaces the image's entrypoint and its arguments, `args` only the arguments.
fn args(
    container: &Container,
    entrypoint: Option<&[String]>,
    cmd: Option<&[String]>,
    variables: &Variables,
) -> Result<Vec<String>, ContainerError> {
    let expand = |words: &Vec<String>| -> Vec<String> {
        words
            .iter()
            .map(|word| env::expand(word, |name| variables.get(name)))
            .collect()
    };
    let command = container
        .command
        .as_ref()
        .filter(|c| !c.is_empty())
        .map(expand);
    let given = container
        .args
        .as_ref()
        .filter(|a| !a.is_empty())
        .map(expand);
    let mut words = match &command {
        Some(command) => command.clone(),
        None => entrypoint.unwrap_or_default().to_vec(),
    };
    match given {
        Some(given) => words.extend(given),
        None if command.is_none() => words.extend(cmd.unwrap_or_default().iter().cloned()),
        None => {}
    }
    if words.is_empty() {
        return Err(ContainerError::NoCommand);
    }
    Ok(words)
}

/// The host name and a search path, the image's variables, the manifest's: each replaces what came before.
fn environment(
    input: &Input<'_>,
    tty: bool,
    image: Option<&[String]>,
    variables: &Variables,
) -> Vec<String> {
    let mut all = Variables::default();
    all.set("PATH", DEFAULT_PATH.to_owned());
    all.set("HOSTNAME", input.hostname.clone());
    if tty {
        all.set("TERM", "xterm".to_owned());
    }
    let entries = image
        .unwrap_or_default()
        .iter()
        .cloned()
        .chain(variables.to_strings());
    for entry in entries {
        if let Some((name, value)) = entry.split_once('=') {
            all.set(name, value.to_owned());
        }
    }
    all.to_strings()
}

fn user(
    image: &Image,
    image_user: Option<&str>,
    security: &Security,
) -> Result<User, ContainerError> {
    let name = match security.user {
        Some(uid) => uid.to_string(),
        None => image_user.unwrap_or_default().to_owned(),
    };
    let known = image.user(&name)?;
    if security.non_root && known.uid == 0 {
        return Err(ContainerError::RunsAsRoot(known.uid));
    }
    let gid = security.group.unwrap_or(known.gid);
    let mut groups = security.groups.clone();
    if !security.strict_groups {
        groups.extend(known.additional_gids);
    }
    Ok(UserBuilder::default()
        .uid(known.uid)
        .gid(gid)
        .additional_gids(groups.into_iter().collect::<Vec<_>>())
        .build()?)
}

/// `lifecycle.stopSignal`, else the image's, else SIGTERM.
pub(super) fn stop_signal(container: &Container, image: &Image) -> Result<i32, ContainerError> {
    let own = container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.stop_signal.clone());
    let images = || {
        image
            .config
            .config()
            .as_ref()
            .and_then(|config| config.stop_signal().clone())
    };
    match own.or_else(images).filter(|name| !name.is_empty()) {
        None => Ok(Signal::SIGTERM as i32),
        Some(name) => parse_signal(&name).ok_or(ContainerError::Signal(name)),
    }
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
fn parse_signal(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=SIGRTMAX).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = if let Some(rest) = short.strip_prefix("RTMIN") {
        SIGRTMIN
            + if rest.is_empty() {
                0
            } else {
                rest.strip_prefix('+')?.parse().ok()?
            }
    } else if let Some(rest) = short.strip_prefix("RTMAX") {
        SIGRTMAX
            - if rest.is_empty() {
                0
            } else {
                rest.strip_prefix('-')?.parse::<i32>().ok()?
            }
    } else {
        Signal::from_str(&format!("SIG{short}")).ok()? as i32
    };
    (1..=SIGRTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_names() {
        for (name, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX", 64),
        ] {
            assert_eq!(parse_signal(name), Some(number), "{name}");
        }
        for bad in ["", "SIGNOTHING", "0", "65", "SIGRTMIN+40", "SIGRTMIN3"] {
            assert_eq!(parse_signal(bad), None, "{bad}");
        }
    }

    #[test]
    fn command_and_args_follow_kubernetes() {
        let words = |list: &str| -> Option<Vec<String>> {
            (!list.is_empty()).then(|| list.split(' ').map(str::to_owned).collect())
        };
        for (command, given, entrypoint, cmd, expected) in [
            ("", "", "/e 1", "a b", "/e 1 a b"),
            ("/c", "", "/e 1", "a b", "/c"),
            ("", "x", "/e 1", "a b", "/e 1 x"),
            ("/c", "x", "/e 1", "a b", "/c x"),
            ("", "", "", "sh", "sh"),
        ] {
            let container = Container {
                command: words(command),
                args: words(given),
                ..Container::default()
            };
            let result = args(
                &container,
                words(entrypoint).as_deref(),
                words(cmd).as_deref(),
                &Variables::default(),
            );
            assert_eq!(result.unwrap().join(" "), expected);
        }
        assert!(matches!(
            args(&Container::default(), None, None, &Variables::default()),
            Err(ContainerError::NoCommand)
        ));
    }
}
