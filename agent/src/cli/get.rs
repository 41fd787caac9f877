//! `podling get pods`.

use std::io::Write;
use std::ops::ControlFlow;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use serde::Serialize;
use serde_json::Value;

use super::client::AgentClient;
use super::columns::Columns;
use super::error::written;
use super::name::{NamespaceArg, PodName, SelectorArg};
use super::{CommandError, Directories, Exit, offline};
use crate::api::LabelSelector;
use crate::api::summary::Summary;

/// Show the node's pods
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling get pods                    those of namespace default
  podling get pods -A -o wide         all, with their addresses and images
  podling get pods -w                 and go on showing each change
  podling get pods -l app=web,tier!=db
                                      those with these labels
  podling get pods hello -o yaml      all that is known of one
  podling get pods -A -o json | jq -r '.items[].status.podIP'

When the agent is away, this shows what the pods' supervisors last recorded, and says so.")]
pub struct GetArgs {
    /// What to show
    #[arg(value_name = "KIND")]
    pub kind: Kind,
    /// Only these
    #[arg(value_name = "NAME")]
    pub names: Vec<PodName>,
    #[command(flatten)]
    pub namespace: NamespaceArg,
    /// Those of all namespaces
    #[arg(short = 'A', long, conflicts_with = "names")]
    pub all_namespaces: bool,
    #[command(flatten)]
    pub labels: SelectorArg,
    /// How to print them
    #[arg(short, long, value_enum, default_value_t = Output::Table, hide_default_value = true)]
    pub output: Output,
    /// Go on printing each change
    #[arg(short, long)]
    pub watch: bool,
    /// Leave out the line of column names
    #[arg(long)]
    pub no_headers: bool,
}

/// What `get` can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The pods of this node
    #[value(name = "pods", aliases = ["pod", "po"])]
    Pods,
}

/// How `get` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns, for people
    Table,
    /// Columns, with addresses and images
    Wide,
    /// A Kubernetes PodList, or a Pod if one is named
    Json,
    /// The same as YAML
    Yaml,
    /// `pod/NAME` lines
    Name,
}

pub(super) fn run(args: &GetArgs, directories: &Directories) -> Result<Exit, CommandError> {
    if args.labels.selector.is_some() && !args.names.is_empty() {
        return Err(CommandError::usage(
            "pods are chosen either by name or by labels",
        ));
    }
    let client = AgentClient::new(directories);
    let namespace = (!args.all_namespaces).then_some(args.namespace.namespace.as_str());
    let selector = args.labels.selector.as_ref();
    let listed = list(&client, directories, namespace, selector)?;
    let mut printer = Printer::new(args);
    let (chosen, missing) = choose(listed.items, &args.names);
    if chosen.is_empty() && missing.is_empty() && !args.watch && printer.is_table() {
        eprintln!(
            "No pods{}.",
            match namespace {
                _ if selector.is_some() => " with these labels".to_owned(),
                Some(namespace) => format!(" in namespace {namespace}; -A shows all"),
                None => " on this node".to_owned(),
            }
        );
    }
    if !chosen.is_empty() || !printer.is_table() && missing.is_empty() {
        printer.print(&chosen, listed.version.as_deref())?;
    }
    let Some(name) = missing.first() else {
        return match listed.version {
            Some(version) if args.watch => follow(&client, args, namespace, &version, &mut printer),
            None if args.watch => Err(CommandError::new("cannot watch without the agent")),
            _ => Ok(Exit::Done),
        };
    };
    Err(not_found(
        namespace.unwrap_or_default(),
        &name.0,
        directories,
    ))
}

/// There is no such pod.
pub(super) fn not_found(namespace: &str, name: &str, directories: &Directories) -> CommandError {
    CommandError::new(format!("there is no pod {name} in namespace {namespace}")).hint(format!(
        "`podling get pods -A{}` lists all; a manifest that was refused is in `podling status`",
        directories.flags()
    ))
}

/// Pods, and the version to watch from; None without an agent.
pub(super) struct Listed {
    pub(super) items: Vec<Pod>,
    pub(super) version: Option<String>,
}

/// From the agent, or without it from the supervisors, saying so.
pub(super) fn list(
    client: &AgentClient,
    directories: &Directories,
    namespace: Option<&str>,
    selector: Option<&LabelSelector>,
) -> Result<Listed, CommandError> {
    match client.pods(namespace, selector) {
        Ok(list) => Ok(Listed {
            items: list.items,
            version: Some(list.metadata.resource_version.unwrap_or_default()),
        }),
        // Supervisors do not know labels.
        Err(e) if selector.is_some() => {
            Err(e.into_command_error("cannot choose pods by labels".to_owned()))
        }
        Err(e) if e.is_away() && directories.pods().is_dir() => {
            eprintln!(
                "note: no agent answers in {}; this is what the pods' supervisors say",
                directories.run.display()
            );
            let mut items = offline::pods(directories)?;
            items.retain(|p| namespace.is_none() || p.metadata.namespace.as_deref() == namespace);
            Ok(Listed {
                items,
                version: None,
            })
        }
        Err(e) => Err(e.without_pods("cannot list pods".to_owned(), directories)),
    }
}

/// Those named, in the order of the names, and the names that are not there; all if none is named.
fn choose(pods: Vec<Pod>, names: &[PodName]) -> (Vec<Pod>, Vec<PodName>) {
    if names.is_empty() {
        return (pods, Vec::new());
    }
    let mut chosen = Vec::new();
    let mut missing = Vec::new();
    for name in names {
        match pods
            .iter()
            .find(|p| p.metadata.name.as_deref() == Some(name.0.as_str()))
        {
            Some(pod) => chosen.push(pod.clone()),
            None => missing.push(name.clone()),
        }
    }
    (chosen, missing)
}

/// Prints each change; begins anew when the agent says that this fell behind.
fn follow(
    client: &AgentClient,
    args: &GetArgs,
    namespace: Option<&str>,
    version: &str,
    printer: &mut Printer,
) -> Result<Exit, CommandError> {
    let mut version = version.to_owned();
    let selector = args.labels.selector.as_ref();
    loop {
        let mut failure = None;
        let mut behind = false;
        client
            .watch_pods(namespace, selector, &version, |event| {
                if event.kind == "ERROR" {
                    behind = true;
                    return ControlFlow::Break(());
                }
                let Ok(pod) = serde_json::from_value::<Pod>(event.object) else {
                    return ControlFlow::Continue(());
                };
                let name = pod.metadata.name.as_deref();
                if !args.names.is_empty() && !args.names.iter().any(|n| Some(n.0.as_str()) == name)
                {
                    return ControlFlow::Continue(());
                }
                match printer.change(&event.kind, pod) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(e) => {
                        failure = Some(e);
                        ControlFlow::Break(())
                    }
                }
            })
            .map_err(|e| e.into_command_error("cannot watch pods".to_owned()))?;
        match failure {
            Some(e) => return written(Err(e)),
            None if behind => {
                let listed = client
                    .pods(namespace, selector)
                    .map_err(|e| e.into_command_error("cannot list pods".to_owned()))?;
                version = listed.metadata.resource_version.unwrap_or_default();
                let (chosen, _) = choose(listed.items, &args.names);
                printer.print(&chosen, None)?;
            }
            None => return Err(CommandError::new("the agent has ended")),
        }
    }
}

/// Prints pods as was asked.
struct Printer {
    output: Output,
    columns: Columns,
    head: bool,
    single: bool,
    widths: Vec<usize>,
}

impl Printer {
    fn new(args: &GetArgs) -> Self {
        let wide = args.output == Output::Wide;
        Self {
            output: args.output,
            columns: Columns {
                namespace: args.all_namespaces,
                ip: wide,
                images: wide,
            },
            head: !args.no_headers,
            single: args.names.len() == 1,
            widths: Vec::new(),
        }
    }

    fn is_table(&self) -> bool {
        matches!(self.output, Output::Table | Output::Wide)
    }

    fn print(&mut self, pods: &[Pod], version: Option<&str>) -> Result<(), CommandError> {
        let text = match self.output {
            Output::Table | Output::Wide => self.rows(pods),
            Output::Name => names(pods),
            Output::Json => json(&self.value(pods, version)?)?,
            Output::Yaml => yaml(&self.value(pods, version)?)?,
        };
        let mut out = std::io::stdout().lock();
        written(out.write_all(text.as_bytes()).and_then(|()| out.flush())).map(|_| ())
    }

    fn change(&mut self, kind: &str, mut pod: Pod) -> std::io::Result<()> {
        if kind == "DELETED" && pod.metadata.deletion_timestamp.is_none() {
            pod.metadata.deletion_timestamp = pod.metadata.creation_timestamp.clone();
        }
        let text = match self.output {
            Output::Table | Output::Wide => self.rows(std::slice::from_ref(&pod)),
            Output::Name => names(std::slice::from_ref(&pod)),
            Output::Json => {
                let event = serde_json::json!({ "type": kind, "object": pod });
                format!("{event}\n")
            }
            Output::Yaml => match serde_saphyr::to_string(&pod) {
                Ok(text) => format!("---\n{text}"),
                Err(e) => return Err(std::io::Error::other(e)),
            },
        };
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush())
    }

    /// The head only the first time.
    fn rows(&mut self, pods: &[Pod]) -> String {
        let now = Timestamp::now();
        let summaries: Vec<Summary> = pods.iter().map(|p| Summary::of(p, now)).collect();
        let lines = self.columns.table(&summaries).lines(&mut self.widths);
        let skip = usize::from(!std::mem::replace(&mut self.head, false));
        lines
            .iter()
            .skip(skip)
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// One pod if one was named, else a PodList.
    fn value(&self, pods: &[Pod], version: Option<&str>) -> Result<Value, CommandError> {
        let value = match pods {
            [pod] if self.single => serde_json::to_value(pod),
            _ => serde_json::to_value(List {
                items: pods.to_vec(),
                metadata: ListMeta {
                    resource_version: version.map(str::to_owned),
                    ..ListMeta::default()
                },
            }),
        };
        value.map_err(|e| CommandError::new("cannot print pods").because(e))
    }
}

fn names(pods: &[Pod]) -> String {
    pods.iter()
        .map(|p| format!("pod/{}\n", p.metadata.name.as_deref().unwrap_or_default()))
        .collect()
}

pub(super) fn json(value: &impl Serialize) -> Result<String, CommandError> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|e| CommandError::new("cannot print JSON").because(e))
}

fn yaml(value: &Value) -> Result<String, CommandError> {
    serde_saphyr::to_string(value).map_err(|e| CommandError::new("cannot print YAML").because(e))
}
