//! Which entry of a multi-platform index is for this machine.

use std::fmt;
use std::str::FromStr;

/// How much worse an image of another architecture is than one of the machine's own, in steps of variants.
const FOREIGN_RANK: u32 = 100;

/// An operating system, an architecture and its variant, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v8`, … What this machine has, or an image asks for, at most.
    pub variant: Option<String>,
}

impl Platform {
    /// This machine, with the variant that its processor has: of an index with images for amd64 and amd64/v3, the
    /// faster one that runs here is chosen.
    pub fn current() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            same => same,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: current_variant(),
        }
    }

    /// How well an image for `offered` runs here: 0 is best, none is not at all.
    pub(crate) fn rank(&self, offered: &Self) -> Option<u32> {
        if !self.runs(offered) {
            return None;
        }
        let wanted = variant_level(&self.architecture, self.variant.as_deref())?;
        let level = variant_level(&offered.architecture, offered.variant.as_deref())?;
        if self.architecture == offered.architecture {
            // A newer variant runs what was made for an older one.
            return wanted.checked_sub(level);
        }
        match (self.architecture.as_str(), level) {
            ("arm64", 5..=8) => Some(FOREIGN_RANK + 8 - level),
            ("amd64", 0) => Some(FOREIGN_RANK),
            _ => None,
        }
    }

    /// True when programs for `offered` run here, as far as the architecture says: also those of the 32-bit sibling,
    /// as with containerd. Variants are not looked at: many configurations tell them wrong.
    pub fn runs(&self, offered: &Self) -> bool {
        let pair = (self.architecture.as_str(), offered.architecture.as_str());
        self.os == offered.os
            && (pair.0 == pair.1 || matches!(pair, ("amd64", "386") | ("arm64", "arm")))
    }
}

/// The level of the x86-64 psABI (3.1.1, "Processor Architecture") that this processor has.
#[cfg(target_arch = "x86_64")]
fn current_variant() -> Option<String> {
    use std::arch::is_x86_feature_detected as has;
    let v2 =
        has!("cmpxchg16b") && has!("popcnt") && has!("sse3") && has!("sse4.2") && has!("ssse3");
    let v3 = v2
        && has!("avx2")
        && has!("bmi1")
        && has!("bmi2")
        && has!("f16c")
        && has!("fma")
        && has!("lzcnt")
        && has!("movbe")
        && has!("xsave");
    let v4 = v3
        && has!("avx512f")
        && has!("avx512bw")
        && has!("avx512cd")
        && has!("avx512dq")
        && has!("avx512vl");
    let level = match (v2, v3, v4) {
        (_, _, true) => "v4",
        (_, true, _) => "v3",
        (true, ..) => "v2",
        _ => return None,
    };
    Some(level.to_owned())
}

/// The version of the architecture, as the kernel names the machine: `armv6l`, `armv7l`; `aarch64` runs all.
#[cfg(target_arch = "arm")]
fn current_variant() -> Option<String> {
    let machine = rustix::system::uname()
        .machine()
        .to_string_lossy()
        .into_owned();
    let level = match machine.strip_prefix("armv") {
        Some(rest) => rest.chars().next().filter(char::is_ascii_digit)?,
        None => '8',
    };
    Some(format!("v{level}"))
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "arm")))]
fn current_variant() -> Option<String> {
    None
}

/// The number of a variant, with the default that containerd's `platforms.Normalize` gives.
fn variant_level(architecture: &str, variant: Option<&str>) -> Option<u32> {
    let default = match architecture {
        "amd64" => 1,
        "arm64" => 8,
        "arm" => 7,
        _ => 0,
    };
    match variant {
        None | Some("") => Some(default),
        Some(variant) => {
            let number = variant.strip_prefix('v').unwrap_or(variant);
            // arm64 has minor versions, such as v9.2.
            number.split('.').next()?.parse().ok()
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<_> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return Err(PlatformError(text.to_owned())),
        };
        if parts.iter().any(|part| part.is_empty()) {
            return Err(PlatformError(text.to_owned()));
        }
        Ok(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant,
        })
    }
}

/// Text that is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid platform `{0}`: write it as `linux/amd64` or `linux/arm/v7`")]
pub struct PlatformError(String);

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn variants_rank_as_containerd_ranks_them() {
        for (wanted, offered, rank) in [
            ("linux/amd64", "linux/amd64", Some(0)),
            ("linux/amd64", "linux/amd64/v1", Some(0)),
            ("linux/amd64", "linux/amd64/v3", None),
            ("linux/amd64/v3", "linux/amd64/v2", Some(1)),
            ("linux/arm64", "linux/arm64/v8", Some(0)),
            ("linux/arm/v7", "linux/arm/v6", Some(1)),
            ("linux/arm/v6", "linux/arm/v7", None),
            ("linux/arm/v8", "linux/arm/v7", Some(1)),
            ("linux/arm/v7", "linux/arm", Some(0)),
            ("linux/arm/7", "linux/arm/v6", Some(1)),
            ("linux/amd64/v4", "linux/amd64/v3", Some(1)),
            ("linux/arm64/v9.2", "linux/arm64/v8", Some(1)),
            ("linux/arm64", "linux/arm64/v9", None),
            ("linux/arm64", "linux/arm/v7", Some(101)),
            ("linux/arm64", "linux/arm/v6", Some(102)),
            ("linux/amd64", "linux/386", Some(100)),
            ("linux/386", "linux/amd64", None),
            ("linux/arm/v7", "linux/arm64", None),
            ("linux/amd64", "linux/amd64/fast", None),
            ("linux/amd64", "windows/amd64", None),
            ("linux/amd64", "unknown/unknown", None),
            ("linux/riscv64", "linux/riscv64", Some(0)),
        ] {
            let found = platform(wanted).rank(&platform(offered));
            assert_eq!(found, rank, "{wanted} {offered}");
        }
    }

    #[test]
    fn this_machine_runs_what_was_made_for_any_of_its_kind() {
        let current = Platform::current();
        let plain = Platform {
            variant: None,
            ..current.clone()
        };
        assert!(current.rank(&plain).is_some(), "{current}");
        assert_eq!(current.rank(&current), Some(0));
    }

    #[test]
    fn text_round_trip_and_errors() {
        for text in ["linux/amd64", "linux/arm/v7"] {
            assert_eq!(platform(text).to_string(), text);
        }
        for bad in ["", "linux", "linux//v7", "a/b/c/d"] {
            assert!(bad.parse::<Platform>().is_err());
        }
    }
}
