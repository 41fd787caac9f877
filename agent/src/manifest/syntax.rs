//! From text to trees: YAML with many documents, and JSON.
//!
//! Limits on everything that grows: the size of the text, the depth of nesting, the number of documents and nodes,
//! and what aliases expand to, so that no manifest costs more than a few megabytes and milliseconds.

use serde_saphyr::Options;

use super::node::{Located, Node};

/// The largest manifest, in bytes. etcd's own limit for a value is 1.5 MiB, and a ConfigMap holds at most 1 MiB.
pub const MANIFEST_BYTES_MAX: usize = 8 << 20;
/// The most documents in a manifest, items of Lists included.
pub const DOCUMENTS_MAX: usize = 1000;
/// The deepest nesting. The deepest field of a Pod is at about 12.
const DEPTH_MAX: usize = 64;
/// The most values in a manifest: 8 MiB of sense have less than one value in 16 bytes.
const NODES_MAX: usize = 500_000;
/// The most values that aliases may add.
const ALIAS_NODES_MAX: usize = 50_000;

/// Why a text is no manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) line: u32,
    pub(super) message: String,
    pub(super) remedy: Option<String>,
}

impl SyntaxError {
    fn new(message: impl Into<String>) -> Self {
        Self {
            line: 0,
            message: message.into(),
            remedy: None,
        }
    }
}

/// The documents of a text, without empty ones. JSON is recognised by its first character.
pub(super) fn documents(text: &str) -> Result<Vec<Node>, SyntaxError> {
    if text.len() > MANIFEST_BYTES_MAX {
        return Err(SyntaxError {
            line: 0,
            // How long it is cannot be told: a file is not read any further.
            message: format!(
                "the manifest is too large; at most {} MiB ({MANIFEST_BYTES_MAX} bytes) are read",
                MANIFEST_BYTES_MAX >> 20
            ),
            remedy: Some("split it into several files".to_owned()),
        });
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let yaml = || yaml_documents(text);
    let documents = if text.trim_start().starts_with('{') {
        match json_documents(text) {
            // YAML's parser knows lines, JSON's knows all escapes: take the best of both.
            Ok(mut documents) => {
                if let Ok(located) = yaml() {
                    for (document, from) in documents.iter_mut().zip(&located) {
                        document.take_lines(from);
                    }
                }
                documents
            }
            // A flow mapping of YAML begins like JSON.
            Err(error) => yaml().map_err(|_| error)?,
        }
    } else {
        yaml()?
    };
    if documents.len() > DOCUMENTS_MAX {
        return Err(SyntaxError::new(format!(
            "the manifest has {} documents; at most {DOCUMENTS_MAX} are read",
            documents.len()
        )));
    }
    Ok(documents)
}

fn json_documents(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let stream = serde_json::Deserializer::from_str(text).into_iter::<Node>();
    let documents: Result<Vec<Node>, _> = stream.collect();
    documents.map_err(|error| SyntaxError {
        line: u32::try_from(error.line()).unwrap_or(0),
        message: format!("this is not JSON: {error}"),
        remedy: None,
    })
}

fn yaml_documents(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let documents: Vec<Located> = serde_saphyr::from_multiple_with_options(text, options())
        .map_err(|error| {
            let line = error.location().map_or(0, |location| location.line());
            let said = error.without_snippet().to_string();
            let said = said.lines().next().unwrap_or_default();
            SyntaxError {
                line: u32::try_from(line).unwrap_or(0),
                remedy: remedy(text, line, said),
                message: in_our_words(said),
            }
        })?;
    let documents = documents.into_iter().map(|Located(node)| node);
    Ok(documents.filter(|node| !node.is_null()).collect())
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_events: 4 * NODES_MAX,
            max_documents: DOCUMENTS_MAX,
            flow_nesting_limit: DEPTH_MAX,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: ALIAS_NODES_MAX,
            max_replay_stack_depth: 16,
        },
        // `defaultMode: 0644` is what people write.
        legacy_octal_numbers: true,
        with_snippet: false,
    }
}

/// What the parser says to programmers, said to those who write manifests.
fn in_our_words(said: &str) -> String {
    if let Some(rest) = said.strip_prefix("duplicate mapping key: ") {
        let key = rest
            .split(", set DuplicateKeyPolicy")
            .next()
            .unwrap_or(rest);
        return format!("the key `{key}` is there twice");
    }
    if said.starts_with("alias ") && said.contains("limit exceeded") {
        return format!("its aliases stand for too much: at most {ALIAS_NODES_MAX} values");
    }
    said.to_owned()
}

fn remedy(text: &str, line: u64, message: &str) -> Option<String> {
    let line = usize::try_from(line).ok()?.checked_sub(1)?;
    let content = text.lines().nth(line)?;
    if content.trim_start_matches(' ').starts_with('\t') {
        return Some("indent with spaces: YAML does not take tabs".to_owned());
    }
    if message.contains("duplicate") {
        return Some("keep one of the two".to_owned());
    }
    if message.starts_with("alias ") {
        return Some("write out what the aliases stand for".to_owned());
    }
    None
}
