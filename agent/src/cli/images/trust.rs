//! What `podling images` has to do with signatures: the policy that it is held to, and how a verdict is shown.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use podling_images::trust::{Trust, Verdict};
use podling_images::{Image, LoadError, LoadOptions, Policy, PublicKey};
use serde_json::{Value, json};

use super::super::CommandError;
use crate::node::{Config, trust};

/// What files are held to.
#[derive(Debug, Args)]
pub struct SignatureArgs {
    /// Take only images with a signature, by --key or by a key that the signature policy has for their registry
    #[arg(long)]
    pub require_signature: bool,
    /// A public key (PEM, such as cosign.pub) that the signature may be made with; may be given several times
    #[arg(long, value_name = "FILE", requires = "require_signature")]
    pub key: Vec<PathBuf>,
    /// Of the signatures by --key, take a bundle that names no image, as cosign 3 makes it: the name in the file is then
    /// not vouched for
    #[arg(long, requires = "key")]
    pub accept_unnamed: bool,
}

impl SignatureArgs {
    /// Options that hold what is loaded to all this.
    pub(super) fn options(&self, config: &Config) -> Result<LoadOptions, CommandError> {
        let keys = self.key.iter().map(|path| {
            let cannot = || CommandError::new(format!("cannot use the key {}", path.display()));
            PublicKey::read(path).map_err(|error| cannot().because(error))
        });
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        Ok(LoadOptions {
            policy: policy(config)?,
            require_signature: self.require_signature.then_some(keys),
            accept_unnamed: self.accept_unnamed,
            ..LoadOptions::default()
        })
    }
}

/// The policy that all that comes is held to.
pub(super) fn policy(config: &Config) -> Result<Option<Arc<Policy>>, CommandError> {
    trust::policy(config).map_err(|error| {
        CommandError::new("no image may come while the signature policy cannot be used")
            .because(error)
    })
}

/// What may help after a failed load.
pub(super) fn remedy(error: &LoadError) -> Option<String> {
    match error {
        LoadError::Distrust(distrust) => Some(trust::remedy(distrust)),
        _ => None,
    }
}

/// How many artifacts with signatures of the image are here.
pub(super) fn count(image: &Image) -> usize {
    image
        .trust
        .as_ref()
        .map_or(0, |trust| trust.signatures.len())
}

/// Where an image came from and why it was allowed, as JSON.
pub(super) fn view(trust: Option<&Trust>) -> Value {
    let Some(trust) = trust else {
        return Value::Null;
    };
    let mut view = match &trust.verdict {
        Verdict::Unchecked {} => json!({"verdict": "unchecked"}),
        Verdict::Allowed { scope } => json!({"verdict": "allowed", "scope": scope}),
        Verdict::Signed { scope, signed_by } => {
            json!({"verdict": "signed", "scope": scope, "signedBy": signed_by})
        }
    };
    view["origin"] = json!(trust.origin.to_string());
    view["signatures"] = json!(
        trust
            .signatures
            .iter()
            .map(|s| &s.manifest)
            .collect::<Vec<_>>()
    );
    view
}
