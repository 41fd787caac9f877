//! Which images may come, where from, and which are removed when the disk fills.

use std::path::PathBuf;

use podling_images::Reference;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::duration::Length;

/// Which images may come, and how they are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ImagesConfig {
    /// Which images may come and run, in the format of containers-policy.json(5); by default
    /// `/etc/podling/policy.json`, and without that file all.
    pub signature_policy: Option<PathBuf>,
    /// How registries are spoken to, in containerd's `hosts.toml` layout; by default `/etc/podling/certs.d`. What
    /// `registries` says of one wins.
    pub hosts_directory: Option<PathBuf>,
    /// Keep compressed layers after they are unpacked: to mend a damaged layer, to save and to push without the registry.
    pub keep_blobs: bool,
    /// The slow check of all images in the background.
    pub scrub: ScrubConfig,
    /// When unneeded images are removed.
    pub gc: GcConfig,
    /// Images that are never removed by the node itself: those that came with the appliance.
    pub pinned: Vec<String>,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self {
            signature_policy: None,
            hosts_directory: None,
            keep_blobs: true,
            scrub: ScrubConfig::default(),
            gc: GcConfig::default(),
            pinned: Vec::new(),
        }
    }
}

/// The slow check of all images in the background.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ScrubConfig {
    /// From the end of one check to the next; 0: never.
    pub interval: Length,
    /// How fast it reads, in bytes per second; 0: as fast as others leave it.
    pub bytes_per_second: u64,
    /// Also while the machine runs on its battery.
    pub on_battery: bool,
}

impl Default for ScrubConfig {
    /// Once a week, 8 MiB/s: 10 GiB take 20 minutes, and any disk has time for others.
    fn default() -> Self {
        Self {
            interval: Length(std::time::Duration::from_secs(7 * 24 * 3600)),
            bytes_per_second: 8 << 20,
            on_battery: false,
        }
    }
}

/// When unneeded images are removed; the names are the kubelet's (`imageGCHighThresholdPercent` and so on).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct GcConfig {
    /// When the file system of the images is so full, images go. 100: never for that reason.
    pub high_threshold_percent: u8,
    /// They go until it is no fuller than this.
    pub low_threshold_percent: u8,
    /// An image stays for so long after it was first seen.
    pub minimum_age: Length,
    /// An image that nobody has used for so long goes in any case; 0: it does not.
    pub maximum_age: Length,
}

impl Default for GcConfig {
    /// As the kubelet does.
    fn default() -> Self {
        Self {
            high_threshold_percent: 85,
            low_threshold_percent: 80,
            minimum_age: Length(std::time::Duration::from_secs(120)),
            maximum_age: Length(std::time::Duration::ZERO),
        }
    }
}

impl GcConfig {
    /// No image is ever removed.
    #[must_use]
    pub fn off() -> Self {
        Self {
            high_threshold_percent: 100,
            ..Self::default()
        }
    }

    /// False: no image is ever removed.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.high_threshold_percent < 100 || !self.maximum_age.0.is_zero()
    }
}

impl ImagesConfig {
    /// Checks the values.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.gc.high_threshold_percent > 100 {
            return Err(ConfigError::Value {
                field: "images.gc.highThresholdPercent",
                message: "must be at most 100, which turns it off".to_owned(),
            });
        }
        if self.gc.low_threshold_percent >= self.gc.high_threshold_percent {
            return Err(ConfigError::Value {
                field: "images.gc.lowThresholdPercent",
                message: "must be below highThresholdPercent".to_owned(),
            });
        }
        for name in &self.pinned {
            Reference::parse(name).map_err(|error| ConfigError::Value {
                field: "images.pinned",
                message: format!("`{name}` does not name an image: {error}"),
            })?;
        }
        Ok(())
    }

    /// The pinned images; those that are not names were refused by [`super::Config::resolve`].
    pub fn pinned(&self) -> impl Iterator<Item = Reference> + '_ {
        self.pinned
            .iter()
            .filter_map(|name| Reference::parse(name).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Config;

    #[test]
    fn ages_are_written_as_people_do() {
        let config = Config::parse(
            "images: {gc: {minimumAge: 1h30m, maximumAge: 0, highThresholdPercent: 90}, pinned: [a:1]}\n",
        )
        .expect("valid");
        let gc = &config.images.gc;
        assert_eq!(gc.minimum_age.0.as_secs(), 5400);
        assert!(gc.maximum_age.0.is_zero() && gc.is_on());
        assert_eq!(gc.low_threshold_percent, 80);
        assert_eq!(config.images.pinned().count(), 1);
        assert!(!GcConfig::off().is_on());
        assert!(Config::parse("images: {gc: {minimumAge: soon}}\n").is_err());
        assert!(Config::parse("images: {gc: {minimumAge: -1}}\n").is_err());
    }

    #[test]
    fn unusable_thresholds_and_names_are_refused() {
        for text in [
            "images: {gc: {lowThresholdPercent: 85}}",
            "images: {gc: {highThresholdPercent: 101}}",
            "images: {pinned: ['A B']}",
        ] {
            let config = Config::parse(text).expect("well-formed");
            assert!(config.resolve().is_err(), "{text}");
        }
    }
}
