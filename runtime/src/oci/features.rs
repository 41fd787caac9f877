//! `features`: what this runtime supports, for engines that ask before they use it.

use serde_json::{Value, json};

use super::error::Result;
use super::print;
use crate::container;

/// The newest version of the specification whose fields are known here.
pub(super) const SPEC_VERSION: &str = "1.3.0";

/// `features`: runtime-spec `features.md`
pub(super) fn features() -> Result<()> {
    print::json(&all())
}

fn all() -> Value {
    let mut capabilities: Vec<String> = caps::all().iter().map(ToString::to_string).collect();
    capabilities.sort();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
        ],
        "mountOptions": [
            "async", "atime", "bind", "copy-symlink", "defaults", "dest-nofollow", "dev", "diratime", "dirsync",
            "exec", "idmap", "lazytime", "loud", "mand", "noatime", "nodev", "nodiratime", "noexec", "nolazytime",
            "nomand", "norelatime", "nostrictatime", "nosuid", "nosymfollow", "private", "ratime", "rbind",
            "rdev", "rdiratime", "relatime", "remount", "rexec", "ridmap", "rnoatime", "rnodev", "rnodiratime",
            "rnoexec", "rnorelatime", "rnostrictatime", "rnosuid", "rnosymfollow", "ro", "rprivate", "rrelatime",
            "rro", "rrw", "rshared", "rslave", "rstrictatime", "rsuid", "rsymfollow", "runbindable", "rw",
            "shared", "silent", "slave", "src-nofollow", "strictatime", "suid", "symfollow", "sync", "tmpcopyup",
            "unbindable",
        ],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": {
                "v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true,
            },
            "seccomp": seccomp(),
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true},
            "memoryPolicy": {
                "modes": [
                    "MPOL_BIND", "MPOL_DEFAULT", "MPOL_INTERLEAVE", "MPOL_LOCAL", "MPOL_PREFERRED",
                    "MPOL_PREFERRED_MANY", "MPOL_WEIGHTED_INTERLEAVE",
                ],
                "flags": ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"],
            },
        },
        "annotations": annotations(),
        "potentiallyUnsafeConfigAnnotations": ["org.systemd.property.", container::KEEP_GROUPS],
    })
}

/// What the compiler of filters knows; which of it the kernel has, loading tells.
fn seccomp() -> Value {
    let flags = [
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    ];
    json!({
        "enabled": true,
        "actions": [
            "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD",
            "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
        ],
        "operators": [
            "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ",
            "SCMP_CMP_NE",
        ],
        "archs": [
            "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_LOONGARCH64", "SCMP_ARCH_M68K", "SCMP_ARCH_MIPS",
            "SCMP_ARCH_MIPS64", "SCMP_ARCH_MIPS64N32", "SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64",
            "SCMP_ARCH_MIPSEL64N32", "SCMP_ARCH_PARISC", "SCMP_ARCH_PARISC64", "SCMP_ARCH_PPC", "SCMP_ARCH_PPC64",
            "SCMP_ARCH_PPC64LE", "SCMP_ARCH_RISCV64", "SCMP_ARCH_S390", "SCMP_ARCH_S390X", "SCMP_ARCH_SH",
            "SCMP_ARCH_SHEB", "SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64",
        ],
        "knownFlags": flags,
        "supportedFlags": flags,
    })
}

/// What engines look for that the specification has no field for. The names are runc's.
fn annotations() -> Value {
    json!({ "org.opencontainers.runc.checkpoint.enabled": "true" })
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{
        Arch, Features, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator,
        MemoryPolicyFlagType, MemoryPolicyModeType,
    };
    use serde::de::DeserializeOwned;

    use super::*;

    fn are_words_of<T: DeserializeOwned>(words: &Value) {
        for word in words.as_array().expect("an array") {
            let parsed = serde_json::from_value::<T>(word.clone());
            assert!(parsed.is_ok(), "{word}");
        }
    }

    #[test]
    fn all_is_in_the_specifications_words() {
        let all = all();
        serde_json::from_value::<Features>(all.clone()).expect("the specification's object");
        let policy = &all["linux"]["memoryPolicy"];
        are_words_of::<MemoryPolicyModeType>(&policy["modes"]);
        are_words_of::<MemoryPolicyFlagType>(&policy["flags"]);
    }

    #[test]
    fn seccomps_words_are_the_specifications() {
        let seccomp = seccomp();
        are_words_of::<LinuxSeccompAction>(&seccomp["actions"]);
        are_words_of::<LinuxSeccompOperator>(&seccomp["operators"]);
        are_words_of::<Arch>(&seccomp["archs"]);
        are_words_of::<LinuxSeccompFilterFlag>(&seccomp["knownFlags"]);
    }
}
