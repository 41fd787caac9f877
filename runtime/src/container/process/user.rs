//! `process.user`: user, groups, umask.

use oci_spec::runtime::User;
use rustix::fs::Mode;
use rustix::process::{Gid, Uid};

use super::super::error::{At, Step};
use super::Done;

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

impl Identity {
    pub(super) fn new(user: &User) -> Self {
        Self {
            uid: user.uid(),
            gid: user.gid(),
            groups: user
                .additional_gids()
                .iter()
                .flatten()
                .map(|&gid| Gid::from_raw(gid))
                .collect(),
            umask: user.umask().unwrap_or(DEFAULT_UMASK),
            keeps_groups: false,
        }
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
        rustix::thread::set_keep_capabilities(true).at(Step::SetUser, subject())?;
        // Groups that were asked for and cannot be had are an error.
        if !self.keeps_groups || !self.groups.is_empty() {
            rustix::thread::set_thread_groups(&self.groups).at(Step::SetUser, subject())?;
        }
        rustix::thread::set_thread_res_gid(gid, gid, gid).at(Step::SetUser, subject())?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).at(Step::SetUser, subject())?;
        rustix::thread::set_keep_capabilities(false).at(Step::SetUser, subject())?;
        rustix::process::umask(Mode::from_raw_mode(self.umask));
        Ok(())
    }
}
