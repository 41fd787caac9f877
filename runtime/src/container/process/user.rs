//! `process.user`: user, groups, umask.

use oci_spec::runtime::User;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, SecureComputingMode};

use super::super::error::{At, Result, Step};
use super::{Done, invalid};

/// Whom the process runs as.
#[derive(Debug)]
pub(super) struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<Gid>,
    umask: u32,
    /// The user namespace denies setgroups(2): the caller's groups stay, which mean nothing inside.
    keeps_groups: bool,
}

/// What a spec without a umask gets.
const DEFAULT_UMASK: u32 = 0o022;

/// To setresuid(2) and setresgid(2) this number, -1, means "stay as you are": root.
const NOBODY_AT_ALL: u32 = u32::MAX;

impl Identity {
    pub(super) fn new(user: &User) -> Result<Self> {
        let groups = user.additional_gids().as_deref().unwrap_or_default();
        for (field, id) in [("uid", user.uid()), ("gid", user.gid())]
            .into_iter()
            .chain(groups.iter().map(|&gid| ("additionalGids", gid)))
        {
            if id == NOBODY_AT_ALL {
                let field = format!("process.user.{field}");
                return Err(invalid(&field, "4294967295 (-1) is no id"));
            }
        }
        if user.umask().is_some_and(|umask| umask > 0o777) {
            return Err(invalid("process.user.umask", "must be at most 0777 (511)"));
        }
        Ok(Self {
            uid: user.uid(),
            gid: user.gid(),
            groups: groups.iter().map(|&gid| Gid::from_raw(gid)).collect(),
            umask: user.umask().unwrap_or(DEFAULT_UMASK),
            keeps_groups: false,
        })
    }

    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    pub(super) fn gid(&self) -> u32 {
        self.gid
    }

    pub(super) fn keep_groups(&mut self) {
        self.keeps_groups = true;
    }

    /// Becomes that user, with the permitted capabilities still there.
    pub(super) fn assume(&self) -> Done {
        let subject = || format!("{}:{}", self.uid, self.gid);
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        // Only a change from root to another user takes capabilities (capabilities(7)).
        let keep = self.uid != 0;
        if keep {
            rustix::thread::set_keep_capabilities(true).at(Step::SetUser, subject())?;
        }
        // Groups that were asked for and cannot be had are an error.
        if !self.keeps_groups || !self.groups.is_empty() {
            match rustix::thread::set_thread_groups(&self.groups) {
                Err(Errno::PERM) if self.groups.is_empty() && groups_are_denied() => {}
                result => result.at(Step::SetUser, subject())?,
            }
        }
        rustix::thread::set_thread_res_gid(gid, gid, gid).at(Step::SetUser, subject())?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).at(Step::SetUser, subject())?;
        if keep {
            rustix::thread::set_keep_capabilities(false).at(Step::SetUser, subject())?;
        }
        rustix::process::umask(Mode::from_raw_mode(self.umask));
        Ok(())
    }
}

/// True when no group is there to drop, or the user namespace that the caller is in denies setgroups(2): with the
/// right to it, and no filter in the way, there is no other cause for a refusal.
fn groups_are_denied() -> bool {
    let none_left = rustix::process::getgroups().is_ok_and(|groups| groups.is_empty());
    let has_right = || {
        rustix::thread::capabilities(None)
            .is_ok_and(|own| own.effective.contains(CapabilitySet::SETGID))
    };
    let no_filter = || {
        matches!(
            rustix::thread::secure_computing_mode(),
            Ok(SecureComputingMode::Disabled)
        )
    };
    none_left || (has_right() && no_filter())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn identity(json: serde_json::Value) -> std::result::Result<(), String> {
        let user: User = serde_json::from_value(json).expect("a user");
        Identity::new(&user).map(drop).map_err(|e| e.to_string())
    }

    #[test]
    fn the_id_that_would_stay_root_is_refused() {
        for (json, field) in [
            (json!({"uid": u32::MAX}), "uid"),
            (json!({"gid": u32::MAX}), "gid"),
            (json!({"additionalGids": [1, u32::MAX]}), "additionalGids"),
        ] {
            let refused = format!("process.user.{field}: 4294967295 (-1) is no id");
            assert_eq!(identity(json), Err(refused));
        }
    }

    #[test]
    fn a_umask_has_nine_bits() {
        assert!(identity(json!({"umask": 0o1000})).is_err());
        assert!(identity(json!({"umask": 0o777})).is_ok());
    }
}
