//! `podling delete`.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::client::AgentClient;
use super::name::{NamespaceArg, PodName, SelectorArg};
use super::{CommandError, Directories, Exit, get};
use crate::api::LabelSelector;

/// Stop a pod and remove it
#[derive(Debug, Args)]
#[command(
    override_usage = "podling delete pod NAME…\n       podling delete pods -l LABELS\n       podling delete -f FILE",
    after_help = "\
Examples:
  podling delete pod hello
  podling delete pod hello --grace-period 0    kill it at once
  podling delete pods -l app=web --restart     start all with this label afresh
  podling delete -f hello.yaml                 the pods that a file names

A pod that comes from a manifest directory or from etcd belongs to its manifest: deleting it here would bring it \
back at once, so that is refused, with the name of the file or key to remove. To start such a pod afresh, use \
--restart: it is stopped, and its manifest starts it again."
)]
pub struct DeleteArgs {
    /// `pod` and its names
    #[arg(value_name = "KIND NAME", num_args = 1.., required_unless_present = "files")]
    pub targets: Vec<String>,
    /// The pods in this manifest
    #[arg(
        short,
        long = "filename",
        value_name = "FILE",
        conflicts_with = "targets"
    )]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub namespace: NamespaceArg,
    #[command(flatten)]
    pub labels: SelectorArg,
    /// Seconds between the stop signal and SIGKILL; the pod's own if not given
    #[arg(long, value_name = "SECONDS")]
    pub grace_period: Option<u32>,
    /// Stop a pod although its manifest will start it again
    #[arg(long)]
    pub restart: bool,
    /// Return at once instead of waiting for the pod's end
    #[arg(long)]
    pub no_wait: bool,
}

pub(super) fn run(args: &DeleteArgs, directories: &Directories) -> Result<Exit, CommandError> {
    let client = AgentClient::new(directories);
    let pods = if let Some(selector) = &args.labels.selector {
        selected(args, &client, selector)?
    } else if args.files.is_empty() {
        let names = parse_targets(&args.targets)?;
        let in_namespace = |name: PodName| (args.namespace.namespace.clone(), name.0);
        names.into_iter().map(in_namespace).collect()
    } else {
        pods_of_files(&args.files, &args.namespace.namespace)?
    };
    for (namespace, name) in &pods {
        delete(args, &client, namespace, name, directories)?;
    }
    Ok(Exit::Done)
}

/// The pods of the namespace that have these labels.
fn selected(
    args: &DeleteArgs,
    client: &AgentClient,
    selector: &LabelSelector,
) -> Result<Vec<(String, String)>, CommandError> {
    match &args.targets[..] {
        [kind] if matches!(kind.as_str(), "pod" | "pods" | "po") => {}
        _ => {
            return Err(
                CommandError::usage("pods are chosen either by name or by labels")
                    .hint("podling delete pods -l app=web"),
            );
        }
    }
    let namespace = &args.namespace.namespace;
    let found = client
        .pods(Some(namespace), Some(selector))
        .map_err(|e| e.into_command_error("cannot list pods".to_owned()))?;
    let names = found.items.into_iter().filter_map(|p| p.metadata.name);
    let pods: Vec<_> = names.map(|name| (namespace.clone(), name)).collect();
    if pods.is_empty() {
        println!("No pods with these labels in namespace {namespace}.");
    }
    Ok(pods)
}

/// `pod a b`, or `pod/a pod/b`.
fn parse_targets(targets: &[String]) -> Result<Vec<PodName>, CommandError> {
    let names = match targets {
        [kind, names @ ..] if matches!(kind.as_str(), "pod" | "pods" | "po") => names,
        [one, ..] if one.contains('/') => targets,
        [other, ..] => {
            return Err(CommandError::usage(format!(
                "`{other}` is not a kind of object that can be deleted"
            ))
            .hint(format!(
                "to delete a pod of that name: podling delete pod {other}"
            )));
        }
        [] => &[],
    };
    if names.is_empty() {
        return Err(CommandError::usage("no pod is named").hint("podling delete pod NAME"));
    }
    let parse = |name: &String| {
        name.parse()
            .map_err(|e: String| CommandError::usage(format!("`{name}`: {e}")))
    };
    names.iter().map(parse).collect()
}

/// The namespaces and names of the pods in manifest files.
fn pods_of_files(
    files: &[PathBuf],
    default_namespace: &str,
) -> Result<Vec<(String, String)>, CommandError> {
    let mut pods = Vec::new();
    for file in files {
        let text = fs::read_to_string(file)
            .map_err(|e| CommandError::new(format!("cannot read {}", file.display())).because(e))?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|e| {
            CommandError::new(format!("{} is not YAML", file.display())).because(e.to_string())
        })?;
        for document in &documents {
            collect_pods(document, default_namespace, &mut pods);
        }
    }
    if pods.is_empty() {
        return Err(CommandError::new("there is no pod in these files"));
    }
    Ok(pods)
}

fn collect_pods(document: &Value, default_namespace: &str, pods: &mut Vec<(String, String)>) {
    if let Some(items) = document["items"].as_array() {
        for item in items {
            collect_pods(item, default_namespace, pods);
        }
    }
    if document["kind"] == "Pod"
        && let Some(name) = document["metadata"]["name"].as_str()
    {
        let namespace = document["metadata"]["namespace"]
            .as_str()
            .unwrap_or(default_namespace);
        pods.push((namespace.to_owned(), name.to_owned()));
    }
}

fn delete(
    args: &DeleteArgs,
    client: &AgentClient,
    namespace: &str,
    name: &str,
    directories: &Directories,
) -> Result<(), CommandError> {
    // The version before, so that the end is seen however fast it comes.
    let before = client
        .pods(Some(namespace), None)
        .map_err(|e| e.into_command_error(format!("cannot delete pod {name}")))?;
    let version = before.metadata.resource_version.unwrap_or_default();
    let deleted = client.delete_pod(namespace, name, args.grace_period, args.restart);
    let pod = deleted.map_err(|e| match e {
        e if e.is_not_found() => get::not_found(namespace, name, directories),
        e if e.is_conflict() => e
            .into_command_error(format!("pod {name} is not deleted"))
            .hint(format!("remove it from its manifest, and it ends; or start it afresh: podling delete pod {name} --restart{}", directories.flags())),
        e => e.into_command_error(format!("cannot delete pod {name}")),
    })?;
    if args.no_wait {
        println!("pod {name} is being ended");
        return Ok(());
    }
    client
        .watch_pods(Some(namespace), None, &version, |event| {
            let of = &event.object["metadata"];
            let named = of["name"] == name;
            let successor = of["uid"]
                .as_str()
                .is_some_and(|uid| Some(uid) != pod.metadata.uid.as_deref());
            // An error means that too much has happened since: then its end may have been missed.
            if event.kind == "ERROR" || named && (event.kind == "DELETED" || successor) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .map_err(|e| e.into_command_error(format!("cannot wait for the end of pod {name}")))?;
    println!(
        "pod {name} {}",
        if args.restart {
            "has ended; its manifest starts it again"
        } else {
            "has ended"
        }
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_named_as_kubectl_names_them() {
        let parse = |targets: &[&str]| {
            let targets: Vec<String> = targets.iter().map(|t| (*t).to_owned()).collect();
            parse_targets(&targets).map(|names| names.into_iter().map(|n| n.0).collect::<Vec<_>>())
        };
        assert_eq!(
            parse(&["pod", "a", "b"]).ok(),
            Some(vec!["a".into(), "b".into()])
        );
        assert_eq!(parse(&["pod/a"]).ok(), Some(vec!["a".into()]));
        assert!(parse(&["a"]).is_err());
        assert!(parse(&["pod"]).is_err());
    }

    #[test]
    fn pods_are_found_in_lists_too() {
        let list = serde_json::json!({ "kind": "List", "items": [
            { "kind": "Pod", "metadata": { "name": "a", "namespace": "n" } },
            { "kind": "ConfigMap", "metadata": { "name": "c" } },
            { "kind": "Pod", "metadata": { "name": "b" } },
        ] });
        let mut pods = Vec::new();
        collect_pods(&list, "default", &mut pods);
        assert_eq!(
            pods,
            [("n".into(), "a".into()), ("default".into(), "b".into())]
        );
    }
}
