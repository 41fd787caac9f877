//! Resolves `User` of an image or of a container to numbers, with the image's own /etc/passwd and /etc/group.
//!
//! The rules are those of Docker and containerd: a name must be known; a number need not be, and then has the group 0;
//! without a group in the text, the user's groups come from the files.

use std::io;

use crate::image::Image;
use crate::layered;

/// Larger files are refused.
const FILE_MAX_BYTES: u64 = 8 << 20;

/// A user, as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User ID.
    pub uid: u32,
    /// Primary group ID.
    pub gid: u32,
    /// Supplementary groups from the image's /etc/group, sorted; none when the group was given.
    pub additional_gids: Vec<u32>,
    /// Home directory from the image's /etc/passwd; none for a number that is not there.
    pub home: Option<String>,
}

/// A user that cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The text is malformed.
    #[error("`{spec}` is not a user: write `name`, `uid`, `name:group` or `uid:gid`")]
    Malformed {
        /// The text.
        spec: String,
    },
    /// No such name in the image.
    #[error("user `{name}` is not in the image's /etc/passwd")]
    UnknownUser {
        /// The name.
        name: String,
    },
    /// No such group in the image.
    #[error("group `{name}` is not in the image's /etc/group")]
    UnknownGroup {
        /// The name.
        name: String,
    },
    /// A file of the image cannot be read.
    #[error("cannot read the image's {path}")]
    Read {
        /// In the image.
        path: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Image {
    /// Resolves `name`, `uid`, `name:group`, `uid:gid` and mixtures; the empty text is root.
    pub fn user(&self, spec: &str) -> Result<User, UserError> {
        resolve(spec, |path| {
            layered::read_file(&self.layers, path, FILE_MAX_BYTES)
                .map(|content| String::from_utf8_lossy(&content.unwrap_or_default()).into_owned())
                .map_err(|source| UserError::Read { path, source })
        })
    }
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn resolve(
    spec: &str,
    read: impl Fn(&'static str) -> Result<String, UserError>,
) -> Result<User, UserError> {
    let (user, group) = split(spec)?;
    let user = if user.is_empty() { "0" } else { user };
    let passwd = read("/etc/passwd")?;
    let number = parse_id(user);
    let line = passwd
        .lines()
        .filter_map(parse_passwd)
        .find(|line| line.name == user || Some(line.uid) == number);
    let (uid, own_gid) = match (&line, number) {
        (Some(line), _) => (line.uid, line.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => {
            return Err(UserError::UnknownUser {
                name: user.to_owned(),
            });
        }
    };
    let home = line.as_ref().map(|line| line.home.to_owned());
    let Some(group) = group else {
        let name = line.as_ref().map(|line| line.name);
        let mut additional_gids = match name {
            Some(name) => groups_of(name, &read("/etc/group")?),
            None => Vec::new(),
        };
        additional_gids.retain(|gid| *gid != own_gid);
        return Ok(User {
            uid,
            gid: own_gid,
            additional_gids,
            home,
        });
    };
    Ok(User {
        uid,
        gid: find_group(group, &read("/etc/group")?)?,
        additional_gids: Vec::new(),
        home,
    })
}

/// The user and the group, which may be missing.
fn split(spec: &str) -> Result<(&str, Option<&str>), UserError> {
    let (user, group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    if group.is_some_and(|group| group.is_empty() || group.contains(':')) {
        return Err(UserError::Malformed {
            spec: spec.to_owned(),
        });
    }
    Ok((user, group))
}

/// The ID of a group by name or number; a number need not be in the file.
fn find_group(group: &str, file: &str) -> Result<u32, UserError> {
    let number = parse_id(group);
    let known = file
        .lines()
        .filter_map(parse_group)
        .find(|(name, gid, _)| *name == group || Some(*gid) == number)
        .map(|(_, gid, _)| gid);
    known.or(number).ok_or_else(|| UserError::UnknownGroup {
        name: group.to_owned(),
    })
}

/// A user or group ID. The largest number means "no change" to the kernel and is none.
fn parse_id(text: &str) -> Option<u32> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|id| *id != u32::MAX)
}

/// `name:password:uid:gid:comment:home:shell` (passwd(5)).
fn parse_passwd(line: &str) -> Option<PasswdLine<'_>> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    Some(PasswdLine {
        name,
        uid: parse_id(fields.nth(1)?)?,
        gid: parse_id(fields.next()?)?,
        home: fields.nth(1).unwrap_or_default(),
    })
}

/// `name:password:gid:members` (group(5)).
fn parse_group(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = parse_id(fields.nth(1)?)?;
    Some((name, gid, fields.next().unwrap_or_default()))
}

fn groups_of(user: &str, groups: &str) -> Vec<u32> {
    let mut gids: Vec<_> = groups
        .lines()
        .filter_map(parse_group)
        .filter(|(_, _, members)| members.split(',').any(|member| member.trim() == user))
        .map(|(_, gid, _)| gid)
        .collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n\nbroken\nweb:x:33:33::/var/www:\n1000:x:5:6::/odd:\n";
    const GROUP: &str = "root:x:0:\nweb:x:33:\nlog:x:4:web,root\nadm:x:3:root, web\nlog2:x:4:web\n";

    fn user(spec: &str) -> Result<User, UserError> {
        resolve(spec, |path| {
            Ok(match path {
                "/etc/passwd" => PASSWD,
                _ => GROUP,
            }
            .to_owned())
        })
    }

    #[test]
    fn names_and_numbers_resolve_as_docker_does() {
        for (spec, uid, gid, additional, home) in [
            ("", 0, 0, vec![3, 4], Some("/root")),
            ("web", 33, 33, vec![3, 4], Some("/var/www")),
            ("33", 33, 33, vec![3, 4], Some("/var/www")),
            ("web:log", 33, 4, vec![], Some("/var/www")),
            ("web:77", 33, 77, vec![], Some("/var/www")),
            ("77", 77, 0, vec![], None),
            ("77:88", 77, 88, vec![], None),
            ("1000", 5, 6, vec![], Some("/odd")),
            (":log", 0, 4, vec![], Some("/root")),
        ] {
            let expected = User {
                uid,
                gid,
                additional_gids: additional,
                home: home.map(str::to_owned),
            };
            assert_eq!(user(spec).unwrap(), expected, "{spec}");
        }
    }

    #[test]
    fn what_is_unknown_or_malformed_is_refused() {
        for (spec, part) in [
            ("nobody", "user `nobody`"),
            ("web:none", "group `none`"),
            ("web:", "not a user"),
            ("a:b:c", "not a user"),
            ("-1", "user `-1`"),
            ("4294967295", "user `4294967295`"),
            ("99999999999", "user `99999999999`"),
        ] {
            let error = user(spec).unwrap_err().to_string();
            assert!(error.contains(part), "{spec}: {error}");
        }
    }

    proptest::proptest! {
        /// Whatever is in the files and in the text, there is a user or an error, and never the number that means
        /// "no change".
        #[test]
        fn any_files_end_in_peace(
            files in "([a-z0-9:,\n]|x:|\n|:0|4294967295|root){0,60}",
            spec in "[a-z0-9:]{0,12}|4294967295|root",
        ) {
            if let Ok(user) = resolve(&spec, |_| Ok(files.clone())) {
                proptest::prop_assert_ne!(user.uid, u32::MAX);
                proptest::prop_assert_ne!(user.gid, u32::MAX);
            }
        }
    }
}
