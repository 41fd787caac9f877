//! Where an image comes from, and which scope of a policy that is in.
//!
//! The scopes of `docker` are, from the most to the least specific, those of containers-policy.json(5):
//! `host:port/namespace/repository:tag` (or `@digest`), the repository, each namespace above it, `host:port`, then
//! `*.` and each domain above the host; those of files are the path and each directory above it. `""` is all else of
//! a transport.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::identity;
use crate::reference::Reference;

/// Transports of other programs, which images never come here by: what a policy says of them is checked and never used.
const OTHER_TRANSPORTS: [&str; 6] = [
    "atomic",
    "containers-storage",
    "docker-daemon",
    "ostree",
    "sif",
    "tarball",
];

/// Where an image came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "transport", rename_all = "kebab-case")]
pub enum Origin {
    /// A registry, or a mirror of it.
    Docker,
    /// A directory with an OCI layout.
    Oci {
        /// Its path, absolute and without symbolic links.
        path: PathBuf,
    },
    /// A tar file with an OCI layout.
    OciArchive {
        /// Its path, absolute and without symbolic links.
        path: PathBuf,
    },
    /// A tar file in Docker's own format.
    DockerArchive {
        /// Its path, absolute and without symbolic links.
        path: PathBuf,
    },
}

impl Origin {
    /// The name that a policy has for it.
    #[must_use]
    pub fn transport(&self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Oci { .. } => "oci",
            Self::OciArchive { .. } => "oci-archive",
            Self::DockerArchive { .. } => "docker-archive",
        }
    }

    /// The scopes that an image of this name is in, the most specific first.
    pub(super) fn scopes(&self, image: &Reference) -> Vec<String> {
        let mut scopes = match self {
            Self::Docker => registry_scopes(image),
            Self::Oci { path } | Self::OciArchive { path } => path
                .ancestors()
                .filter(|path| path.parent().is_some())
                .map(|path| path.to_string_lossy().into_owned())
                .collect(),
            Self::DockerArchive { .. } => Vec::new(),
        };
        scopes.push(String::new());
        scopes
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Docker => f.write_str("docker"),
            Self::Oci { path } | Self::OciArchive { path } | Self::DockerArchive { path } => {
                write!(f, "{}:{}", self.transport(), path.display())
            }
        }
    }
}

fn registry_scopes(image: &Reference) -> Vec<String> {
    let canonical = image.canonical().to_string();
    let mut name = identity::name(image);
    let mut scopes = vec![canonical, name.clone()];
    while let Some(slash) = name.rfind('/') {
        name.truncate(slash);
        scopes.push(name.clone());
    }
    let host = name.split(':').next().unwrap_or_default();
    let mut domain = host;
    while let Some((_, above)) = domain.split_once('.') {
        scopes.push(format!("*.{above}"));
        domain = above;
    }
    scopes
}

/// Refuses a transport that is none, and a scope that nothing could ever be in: its author means something else.
pub(super) fn check(transport: &str, scope: &str) -> Result<(), String> {
    match transport {
        _ if scope.is_empty() => check_transport(transport),
        "docker" => check_registry_scope(scope),
        "oci" | "oci-archive" | "dir" => check_path(scope),
        "docker-archive" => Err("docker-archive has no scope but \"\"".to_owned()),
        other => check_transport(other),
    }
}

pub(super) fn check_transport(transport: &str) -> Result<(), String> {
    let own = ["docker", "oci", "oci-archive", "docker-archive", "dir"];
    if own.contains(&transport) || OTHER_TRANSPORTS.contains(&transport) {
        return Ok(());
    }
    Err(format!(
        "`{transport}` is no transport; images come by docker, oci, oci-archive and docker-archive"
    ))
}

fn check_registry_scope(scope: &str) -> Result<(), String> {
    if let Some(domain) = scope.strip_prefix("*.") {
        let is_domain = !domain.contains(['/', ':', '@', '*']) && is_prefix(&format!("a.{domain}"));
        return match is_domain {
            true => Ok(()),
            false => Err(format!(
                "`{scope}`: after `*.` there must be a domain alone, such as *.example.com"
            )),
        };
    }
    if scope.contains('*') {
        return Err(format!(
            "`{scope}`: `*` may only stand for the first labels of a host, as in *.example.com"
        ));
    }
    check_prefix(scope).or_else(|reason| match Reference::parse(scope) {
        Ok(reference) if reference.canonical().to_string() == scope => Ok(()),
        Ok(reference) if scope.contains('/') => Err(format!(
            "`{scope}` is not the whole name: write {}",
            reference.canonical()
        )),
        _ => Err(reason),
    })
}

/// A host, a namespace or a repository, in its full form: with the host, and `library/` of Docker Hub.
pub(super) fn check_prefix(prefix: &str) -> Result<(), String> {
    if is_prefix(prefix) {
        return Ok(());
    }
    Err(format!(
        "`{prefix}` is no host, namespace or repository in its full form, such as registry.example:5000, \
         registry.example/team or docker.io/library/nginx"
    ))
}

fn is_prefix(prefix: &str) -> bool {
    // Two parts more, since one part below docker.io would get `library/` before it.
    let below = format!("{prefix}/x/x");
    Reference::parse(&below).is_ok_and(|reference| identity::name(&reference) == below)
}

fn check_path(scope: &str) -> Result<(), String> {
    let path = Path::new(scope);
    let is_plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    // Components leave out what is doubled or at the end.
    let rebuilt: PathBuf = path.components().collect();
    if !path.is_absolute() || !is_plain || rebuilt.as_os_str() != scope || path.parent().is_none() {
        return Err(format!(
            "`{scope}` must be an absolute path without `.`, `..` and a slash at the end, and not `/` (for all paths, \
             write \"\")"
        ));
    }
    if path
        .file_name()
        .is_some_and(|name| name.to_string_lossy().contains(':'))
    {
        return Err(format!(
            "`{scope}`: one image of a layout is no scope; name the directory or file"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_scopes_go_from_the_image_to_its_domains() {
        let image = "a.b.example:5000/team/app:1".parse().unwrap();
        assert_eq!(
            Origin::Docker.scopes(&image),
            [
                "a.b.example:5000/team/app:1",
                "a.b.example:5000/team/app",
                "a.b.example:5000/team",
                "a.b.example:5000",
                "*.b.example",
                "*.example",
                ""
            ]
        );
        let image = "nginx".parse().unwrap();
        let scopes = Origin::Docker.scopes(&image);
        assert_eq!(
            scopes[..2],
            ["docker.io/library/nginx:latest", "docker.io/library/nginx"]
        );
    }

    #[test]
    fn a_files_scopes_are_the_directories_above_it() {
        let image = "app:1".parse().unwrap();
        let path = PathBuf::from("/media/usb/app.tar");
        let scopes = Origin::OciArchive { path: path.clone() }.scopes(&image);
        assert_eq!(scopes, ["/media/usb/app.tar", "/media/usb", "/media", ""]);
        assert_eq!(Origin::DockerArchive { path }.scopes(&image), [""]);
    }

    #[test]
    fn scopes_that_nothing_could_be_in_are_refused() {
        let digest = crate::digest::Digest::sha256(b"");
        let pinned = format!("registry.example/app@{digest}");
        for (transport, scope) in [
            ("docker", ""),
            ("docker", "docker.io"),
            ("docker", "localhost"),
            ("docker", "localhost:5000"),
            ("docker", "registry.example/team"),
            ("docker", "registry.example/team/app:1"),
            ("docker", &pinned),
            ("docker", "*.example.com"),
            ("oci", "/var/lib/images"),
            ("oci-archive", "/media/usb/app.tar"),
            ("docker-archive", ""),
            ("docker-daemon", ""),
            ("atomic", "anything"),
        ] {
            assert_eq!(check(transport, scope), Ok(()), "{transport} {scope}");
        }
        for (transport, scope, expected) in [
            ("docker", "busybox", "full form"),
            (
                "docker",
                "library/busybox",
                "write docker.io/library/busybox",
            ),
            (
                "docker",
                "docker.io/busybox:1",
                "write docker.io/library/busybox:1",
            ),
            ("docker", "ex*.example.com", "`*`"),
            ("docker", "*.*.example.com", "`*.`"),
            ("docker", "*.example.com/app", "`*.`"),
            ("docker", "Registry.example/UPPER", "full form"),
            ("oci", "relative", "absolute"),
            ("oci", "/", "absolute"),
            ("oci", "/a/../b", "absolute"),
            ("oci", "/a/", "absolute"),
            ("oci", "/a/layout:1", "no scope"),
            ("docker-archive", "/a", "no scope"),
            ("docekr", "", "no transport"),
            ("docekr", "registry.example", "no transport"),
        ] {
            let refused = check(transport, scope).unwrap_err();
            assert!(refused.contains(expected), "{transport} {scope}: {refused}");
        }
    }
}
