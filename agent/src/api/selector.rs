//! Which pods are meant: by labels and by fields, as kubectl's `-l` and `--field-selector` and the API's
//! `labelSelector` and `fieldSelector` have it.
//!
//! ```text
//! app=web            app is web                       app in (web, db)      app is one of them
//! app==web           the same                         app notin (web, db)   app is none of them, or not there
//! app!=web           app is not web, or not there     app                   there is such a label
//! a=b,c!=d           all of it must hold              !app                  there is none
//! ```
//!
//! The rules are those of `k8s.io/apimachinery/pkg/labels/selector.go`, without `>` and `<`, which kubectl's help does not
//! know either.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use k8s_openapi::api::core::v1::Pod;

use crate::manifest::{check_label_key, check_label_value};

/// Labels that a pod must have or not have. The empty one means every pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    text: String,
    requirements: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    /// Also when the label is not there.
    NotIn(Vec<String>),
    Exists,
    Absent,
}

impl LabelSelector {
    /// Whether an object with these labels is meant.
    #[must_use]
    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.and_then(|labels| labels.get(&requirement.key));
            match &requirement.test {
                Test::In(values) => value.is_some_and(|value| values.contains(value)),
                Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
            }
        })
    }
}

impl fmt::Display for LabelSelector {
    /// As it was written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for LabelSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = split_outside_parentheses(text).into_iter();
        let parts = parts.map(str::trim).filter(|part| !part.is_empty());
        let requirements: Result<_, String> = parts.map(requirement).collect();
        Ok(Self {
            text: text.to_owned(),
            requirements: requirements?,
        })
    }
}

/// At the commas that are not between values.
fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut inside = false;
    text.split(|c| {
        match c {
            '(' => inside = true,
            ')' => inside = false,
            _ => {}
        }
        c == ',' && !inside
    })
    .collect()
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let (key, test) = if let Some(key) = text.strip_prefix('!') {
        (key.trim(), Test::Absent)
    } else if let Some((key, value)) = text.split_once("!=") {
        (key.trim(), Test::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (key.trim(), Test::In(vec![value.trim().to_owned()]))
    } else if let Some((key, set)) = text.split_once(char::is_whitespace) {
        (key, set_of(text, set.trim())?)
    } else {
        (text, Test::Exists)
    };
    check_label_key(key)?;
    if let Test::In(values) | Test::NotIn(values) = &test {
        values.iter().try_for_each(|v| check_label_value(v))?;
    }
    Ok(Requirement {
        key: key.to_owned(),
        test,
    })
}

/// `in (a, b)` or `notin (a, b)`.
fn set_of(whole: &str, text: &str) -> Result<Test, String> {
    let not_understood = || {
        format!(
            "`{whole}` is not a label selector: write key=value, key!=value, `key in (a, b)`, `key notin (a, b)`, key \
             or !key, with commas between"
        )
    };
    let (word, values) = text.split_once('(').ok_or_else(not_understood)?;
    let values = values.strip_suffix(')').ok_or_else(not_understood)?;
    let values = values.split(',').map(|v| v.trim().to_owned()).collect();
    match word.trim() {
        "in" => Ok(Test::In(values)),
        "notin" => Ok(Test::NotIn(values)),
        _ => Err(not_understood()),
    }
}

/// Fields that a pod must have: those that Kubernetes' API server knows for pods
/// (`ToSelectableFields` in `pkg/registry/core/pod/strategy.go`). The empty one means every pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Field, whether it must be so or must not, and the value.
    requirements: Vec<(Field, bool, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
    NodeName,
    RestartPolicy,
    SchedulerName,
    ServiceAccountName,
    HostNetwork,
    Phase,
    PodIp,
    NominatedNodeName,
}

impl Field {
    const ALL: [(&'static str, Field); 10] = [
        ("metadata.name", Field::Name),
        ("metadata.namespace", Field::Namespace),
        ("spec.nodeName", Field::NodeName),
        ("spec.restartPolicy", Field::RestartPolicy),
        ("spec.schedulerName", Field::SchedulerName),
        ("spec.serviceAccountName", Field::ServiceAccountName),
        ("spec.hostNetwork", Field::HostNetwork),
        ("status.phase", Field::Phase),
        ("status.podIP", Field::PodIp),
        ("status.nominatedNodeName", Field::NominatedNodeName),
    ];

    fn of(self, pod: &Pod) -> String {
        let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
        let value = match self {
            Self::Name => pod.metadata.name.clone(),
            Self::Namespace => pod.metadata.namespace.clone(),
            Self::NodeName => spec.and_then(|s| s.node_name.clone()),
            Self::RestartPolicy => spec.and_then(|s| s.restart_policy.clone()),
            Self::SchedulerName => spec.and_then(|s| s.scheduler_name.clone()),
            Self::ServiceAccountName => spec.and_then(|s| s.service_account_name.clone()),
            Self::HostNetwork => Some(
                spec.and_then(|s| s.host_network)
                    .unwrap_or(false)
                    .to_string(),
            ),
            Self::Phase => status.and_then(|s| s.phase.clone()),
            Self::PodIp => status.and_then(|s| s.pod_ip.clone()),
            Self::NominatedNodeName => status.and_then(|s| s.nominated_node_name.clone()),
        };
        value.unwrap_or_default()
    }
}

impl FieldSelector {
    /// Whether this pod is meant.
    #[must_use]
    pub fn matches(&self, pod: &Pod) -> bool {
        let mut all = self.requirements.iter();
        all.all(|(field, wanted, value)| (field.of(pod) == *value) == *wanted)
    }
}

impl FromStr for FieldSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|p| !p.is_empty());
        let requirements: Result<_, String> = parts.map(field_requirement).collect();
        Ok(Self {
            requirements: requirements?,
        })
    }
}

fn field_requirement(text: &str) -> Result<(Field, bool, String), String> {
    let (name, wanted, value) = if let Some((name, value)) = text.split_once("!=") {
        (name, false, value)
    } else if let Some((name, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (name, true, value)
    } else {
        return Err(format!(
            "`{text}` is not a field selector: write field=value or field!=value"
        ));
    };
    let known = Field::ALL.iter().find(|(known, _)| *known == name.trim());
    let (_, field) = known.ok_or_else(|| {
        let all: Vec<&str> = Field::ALL.iter().map(|(name, _)| *name).collect();
        format!(
            "pods are not selected by `{name}`, but by {}",
            all.join(", ")
        )
    })?;
    Ok((*field, wanted, value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        let selector: LabelSelector = selector.parse().expect("a selector");
        selector.matches(Some(&labels.collect()))
    }

    #[test]
    fn labels_are_selected_as_kubectl_selects_them() {
        let web = [("app", "web"), ("tier", "")];
        for yes in [
            "",
            "app=web",
            "app==web",
            "app = web , tier=",
            "app!=db",
            "other!=db",
            "app in (db,web)",
            "app in ( web )",
            "tier in (a,)",
            "app notin (db, cache)",
            "other notin (a)",
            "app",
            "!other",
            "! other",
            "app,tier,!other,app in (web,db),app!=x",
        ] {
            assert!(selects(yes, &web), "{yes}");
        }
        for no in [
            "app=db",
            "app!=web",
            "app in (db)",
            "app notin (web)",
            "other",
            "!app",
            "app=web,tier=a",
            "other=",
            "tier",
        ] {
            let labels = if no == "tier" { &web[..1] } else { &web[..] };
            assert!(!selects(no, labels), "{no}");
        }
        assert!(LabelSelector::default().matches(None));
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for bad in [
            "=web",
            "!",
            "app web",
            "app in web",
            "app in (web",
            "app on (web)",
            "a=b c",
            "-a=b",
            "x/y/z",
            "app=web)",
        ] {
            assert!(bad.parse::<LabelSelector>().is_err(), "{bad}");
        }
        let error = "spec.image=x"
            .parse::<FieldSelector>()
            .expect_err("unknown");
        assert!(error.contains("status.phase"), "{error}");
        assert!("status.phase".parse::<FieldSelector>().is_err());
    }

    #[test]
    fn fields_are_selected() {
        let mut pod = Pod::default();
        pod.metadata.name = Some("a".into());
        pod.status.get_or_insert_default().phase = Some("Running".into());
        let selects = |text: &str| {
            let selector: FieldSelector = text.parse().expect("a selector");
            selector.matches(&pod)
        };
        assert!(selects("metadata.name=a,status.phase!=Failed"));
        assert!(selects("spec.hostNetwork=false,spec.nodeName="));
        assert!(!selects("status.phase=Failed"));
        assert!(!selects("metadata.name!=a"));
    }
}
