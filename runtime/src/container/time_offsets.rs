//! `linux.timeOffsets`: what the clocks of a new time namespace are ahead of the host's (time_namespaces(7)).

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::error::{At, Error, Failure, Result, Step};
use super::namespaces::{Had, how, path_of};
use super::procfs;

/// The clocks that a time namespace has.
const CLOCKS: [&str; 2] = ["monotonic", "boottime"];
/// A second.
const NANOSECS: u32 = 1_000_000_000;

/// The offsets, as the kernel reads them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TimeOffsets(String);

impl TimeOffsets {
    /// None when the spec has none.
    pub(super) fn new(spec: &Spec) -> Result<Option<Self>> {
        let invalid = |clock: &str, reason: &str| {
            Err(Error::Invalid {
                field: format!("linux.timeOffsets{clock}"),
                reason: reason.to_owned(),
            })
        };
        let Some(offsets) = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.time_offsets().as_ref())
            .filter(|offsets| !offsets.is_empty())
        else {
            return Ok(None);
        };
        if how(spec, LinuxNamespaceType::Time) == Had::Shared
            || path_of(spec, LinuxNamespaceType::Time).is_some()
        {
            return invalid("", "need a new time namespace");
        }
        let mut lines = Vec::new();
        for (clock, offset) in offsets {
            let (secs, nanosecs) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
            let name = format!(".{clock}");
            if !CLOCKS.contains(&clock.as_str()) {
                return invalid(
                    &name,
                    "is not a clock of time namespaces: monotonic, boottime",
                );
            }
            if nanosecs >= NANOSECS {
                return invalid(&name, "has nanosecs of a second or more");
            }
            lines.push(format!("{clock} {secs} {nanosecs}\n"));
        }
        lines.sort();
        Ok(Some(Self(lines.concat())))
    }

    /// In the process that made the time namespace, before any process is in it.
    pub(super) fn write(&self) -> std::result::Result<(), Failure> {
        procfs::write("self/timens_offsets", &self.0).at(
            Step::WriteTimeOffsets,
            self.0.trim_end().replace('\n', ", "),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{Linux, LinuxNamespaceBuilder, LinuxTimeOffset};

    fn offsets(clock: &str, secs: i64, nanosecs: u32) -> Result<Option<TimeOffsets>> {
        let mut offset = LinuxTimeOffset::default();
        offset.set_secs(Some(secs)).set_nanosecs(Some(nanosecs));
        let mut linux = Linux::default();
        linux.set_time_offsets(Some([(clock.to_owned(), offset)].into()));
        let time = LinuxNamespaceBuilder::default()
            .typ(LinuxNamespaceType::Time)
            .build()
            .expect("builds");
        linux.namespaces_mut().get_or_insert_default().push(time);
        let mut spec = Spec::default();
        spec.set_linux(Some(linux));
        TimeOffsets::new(&spec)
    }

    #[test]
    fn offsets_read_as_the_kernel_wants_them() {
        assert_eq!(
            offsets("boottime", -7, 5).expect("fine"),
            Some(TimeOffsets("boottime -7 5\n".into()))
        );
        assert_eq!(TimeOffsets::new(&Spec::default()).expect("fine"), None);
    }

    #[test]
    fn what_is_no_offset_is_refused() {
        assert!(offsets("realtime", 1, 0).is_err());
        assert!(offsets("monotonic", 1, NANOSECS).is_err());
    }

    #[test]
    fn offsets_need_a_new_time_namespace() {
        let mut linux = Linux::default();
        linux.set_time_offsets(Some(
            [("boottime".to_owned(), LinuxTimeOffset::default())].into(),
        ));
        let mut spec = Spec::default();
        spec.set_linux(Some(linux));
        let error = TimeOffsets::new(&spec).expect_err("refused");
        assert_eq!(
            error.to_string(),
            "linux.timeOffsets: need a new time namespace"
        );
    }
}
