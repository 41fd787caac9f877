//! Names on the command line: pods, namespaces, spans of time.

use std::str::FromStr;

use clap::Args;

use crate::api::LabelSelector;

/// A pod's name, with the `pod/` in front that kubectl's users type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName(pub String);

impl FromStr for PodName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = ["pods/", "pod/", "po/"]
            .iter()
            .find_map(|prefix| text.strip_prefix(prefix))
            .unwrap_or(text);
        if let Some((kind, _)) = name.split_once('/') {
            return Err(format!(
                "`{kind}` is not a kind of object this works on: give a pod's name"
            ));
        }
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if name.is_empty() || name.len() > 253 || !name.chars().all(valid) {
            return Err("a pod's name has lower-case letters, digits, `-` and `.` only".to_owned());
        }
        Ok(Self(name.to_owned()))
    }
}

impl std::fmt::Display for PodName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which namespace a command looks in.
#[derive(Debug, Clone, Args)]
pub struct NamespaceArg {
    /// The namespace to look in
    #[arg(
        short,
        long,
        env = "PODLING_NAMESPACE",
        default_value = "default",
        value_name = "NAMESPACE",
        hide_env_values = true
    )]
    pub namespace: String,
}

/// Which pods are meant by their labels.
#[derive(Debug, Clone, Args)]
pub struct SelectorArg {
    /// Only pods with these labels: app=web, app!=web, 'app in (web, db)', 'app notin (web)', app, !app; commas between
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<LabelSelector>,
}

pub(super) use crate::node::config::parse_duration;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn pod_names_may_carry_their_kind() {
        assert_eq!("pod/hello".parse(), Ok(PodName("hello".into())));
        assert_eq!("hello".parse(), Ok(PodName("hello".into())));
        assert!("deployment/x".parse::<PodName>().is_err());
        assert!("../x".parse::<PodName>().is_err());
        assert!("Hello".parse::<PodName>().is_err());
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(parse_duration("2d"), Ok(Duration::from_secs(172_800)));
        for bad in ["", "s", "5x", "-1s", "1.5s", "99999999999s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
