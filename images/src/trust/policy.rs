//! The file of a policy (containers-policy.json(5)), read strictly: what is not known, given twice or not supported
//! makes the whole file unusable.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::identity::{Identity, Named};
use super::key::{KeyError, PublicKey};
use super::once::Once;
use super::{read_bounded, scope};

/// The largest policy; one of a thousand repositories has some 200 KiB.
const POLICY_MAX_BYTES: u64 = 1 << 20;
/// Of one requirement. Each of up to 128 signatures is tried with each of them, which takes a second or two at most.
const KEYS_MAX: usize = 32;

/// Which images may come here and run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub(super) file: PathBuf,
    pub(super) default: Vec<Requirement>,
    /// By transport, then by scope.
    pub(super) transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

/// What an image must fulfil. Of several, all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Requirement {
    /// Nothing.
    Anything,
    /// None is allowed.
    Reject,
    /// A signature by one of the keys.
    Signed {
        keys: Vec<PublicKey>,
        identity: Identity,
        /// Whether a signature counts that is for no name at all.
        accept_unnamed: bool,
    },
}

/// A policy that cannot be used. Nothing is allowed by it.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("cannot read the signature policy {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It is not the JSON it should be.
    #[error("the signature policy {path} is malformed at `{at}`")]
    Json {
        /// The file.
        path: PathBuf,
        /// The field.
        at: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A value cannot be used.
    #[error("the signature policy {path} cannot be used: `{at}`: {reason}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The field.
        at: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A key cannot be used.
    #[error("the signature policy {path} cannot be used: `{at}`")]
    Key {
        /// The file.
        path: PathBuf,
        /// The field.
        at: String,
        /// What is wrong with the key.
        #[source]
        source: KeyError,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    default: Vec<RawRequirement>,
    #[serde(default)]
    transports: Once<Once<Vec<RawRequirement>>>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
enum RawRequirement {
    InsecureAcceptAnything(Nothing),
    Reject(Nothing),
    SignedBy(IgnoredAny),
    SigstoreSigned(Box<RawSigned>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawSigned {
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    signed_identity: Option<RawIdentity>,
    accept_unnamed: Option<bool>,
    rekor_public_key_path: Option<IgnoredAny>,
    rekor_public_key_paths: Option<IgnoredAny>,
    rekor_public_key_data: Option<IgnoredAny>,
    rekor_public_key_datas: Option<IgnoredAny>,
    fulcio: Option<IgnoredAny>,
    pki: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
enum RawIdentity {
    MatchExact(Nothing),
    MatchRepoDigestOrExact(Nothing),
    MatchRepository(Nothing),
    ExactReference(RawExactReference),
    ExactRepository(RawExactRepository),
    RemapIdentity(RawRemap),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawExactReference {
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawExactRepository {
    docker_repository: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawRemap {
    prefix: String,
    signed_prefix: String,
}

impl Policy {
    /// Reads a policy and the keys that it names.
    ///
    /// # Errors
    /// When the file or a key cannot be read, or holds anything that is unknown, given twice or not supported.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let json = read_bounded(path, POLICY_MAX_BYTES).map_err(|source| PolicyError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &json)
    }

    /// Parses a policy and reads the keys that it names; `path` is what errors call it.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self, PolicyError> {
        let deserializer = &mut serde_json::Deserializer::from_slice(json);
        let malformed = |at: String, source| PolicyError::Json {
            path: path.to_owned(),
            at,
            source,
        };
        let raw: RawPolicy = serde_path_to_error::deserialize(&mut *deserializer)
            .map_err(|e| malformed(e.path().to_string(), e.into_inner()))?;
        deserializer
            .end()
            .map_err(|e| malformed(".".to_owned(), e))?;
        let reader = Reader { path };
        let mut transports = BTreeMap::new();
        for (transport, raw_scopes) in raw.transports.0 {
            let at = format!("transports.{transport}");
            let checked = scope::check_transport(&transport);
            checked.map_err(|reason| reader.value(&at, reason))?;
            let mut scopes = BTreeMap::new();
            for (scope, raw) in raw_scopes.0 {
                let at = format!("{at}.{scope}");
                let checked = scope::check(&transport, &scope);
                checked.map_err(|reason| reader.value(&at, reason))?;
                scopes.insert(scope, reader.requirements(&at, raw)?);
            }
            transports.insert(transport, scopes);
        }
        Ok(Self {
            file: path.to_owned(),
            default: reader.requirements("default", raw.default)?,
            transports,
        })
    }

    /// The file it was read from.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }
}

/// Makes what was parsed into what is judged by.
struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn value(&self, at: &str, reason: impl Into<String>) -> PolicyError {
        PolicyError::Value {
            path: self.path.to_owned(),
            at: at.to_owned(),
            reason: reason.into(),
        }
    }

    fn requirements(
        &self,
        at: &str,
        raw: Vec<RawRequirement>,
    ) -> Result<Vec<Requirement>, PolicyError> {
        if raw.is_empty() {
            return Err(self.value(
                at,
                "the list is empty; to allow all, write {\"type\": \"insecureAcceptAnything\"}",
            ));
        }
        let numbered = raw.into_iter().enumerate();
        numbered
            .map(|(i, raw)| self.requirement(&format!("{at}[{i}]"), raw))
            .collect()
    }

    fn requirement(&self, at: &str, raw: RawRequirement) -> Result<Requirement, PolicyError> {
        match raw {
            RawRequirement::InsecureAcceptAnything(Nothing {}) => Ok(Requirement::Anything),
            RawRequirement::Reject(Nothing {}) => Ok(Requirement::Reject),
            RawRequirement::SignedBy(IgnoredAny) => Err(self.value(
                at,
                "signedBy (GPG) is not supported; sign with a sigstore key and write sigstoreSigned",
            )),
            RawRequirement::SigstoreSigned(raw) => self.signed(at, *raw),
        }
    }

    fn signed(&self, at: &str, raw: RawSigned) -> Result<Requirement, PolicyError> {
        let rekor = [
            raw.rekor_public_key_path,
            raw.rekor_public_key_paths,
            raw.rekor_public_key_data,
            raw.rekor_public_key_datas,
        ];
        if rekor.iter().any(Option::is_some) {
            let reason = "rekorPublicKey… is not supported: signatures are checked by their key alone, offline";
            return Err(self.value(at, reason));
        }
        if raw.fulcio.is_some() || raw.pki.is_some() {
            let reason =
                "certificates (fulcio, pki) are not supported: sign with a key, and write keyPath";
            return Err(self.value(at, reason));
        }
        let identity = match raw.signed_identity {
            Some(identity) => self.identity(&format!("{at}.signedIdentity"), identity)?,
            None => Identity::default(),
        };
        let path = |path: PathBuf| match path.is_absolute() {
            true => PublicKey::read(&path).map_err(|source| self.key(at, source)),
            false => Err(self.value(
                at,
                format!("the path of the key, {}, must be absolute", path.display()),
            )),
        };
        let data = |text: String| PublicKey::from_base64(&text).map_err(|e| self.key(at, e));
        let keys: Vec<_> = match (raw.key_path, raw.key_paths, raw.key_data, raw.key_datas) {
            (Some(one), None, None, None) => vec![path(one)?],
            (None, Some(many), None, None) => {
                many.into_iter().map(path).collect::<Result<_, _>>()?
            }
            (None, None, Some(one), None) => vec![data(one)?],
            (None, None, None, Some(many)) => {
                many.into_iter().map(data).collect::<Result<_, _>>()?
            }
            _ => {
                let reason = "exactly one of keyPath, keyPaths, keyData and keyDatas must be there";
                return Err(self.value(at, reason));
            }
        };
        match keys.len() {
            1..=KEYS_MAX => Ok(Requirement::Signed {
                keys,
                identity,
                accept_unnamed: raw.accept_unnamed.unwrap_or(false),
            }),
            n => Err(self.value(
                at,
                format!("there are {n} keys; 1 to {KEYS_MAX} are supported"),
            )),
        }
    }

    fn key(&self, at: &str, source: KeyError) -> PolicyError {
        PolicyError::Key {
            path: self.path.to_owned(),
            at: at.to_owned(),
            source,
        }
    }

    fn identity(&self, at: &str, raw: RawIdentity) -> Result<Identity, PolicyError> {
        Ok(match raw {
            RawIdentity::MatchExact(Nothing {}) => Identity::MatchExact,
            RawIdentity::MatchRepoDigestOrExact(Nothing {}) => Identity::MatchRepoDigestOrExact,
            RawIdentity::MatchRepository(Nothing {}) => Identity::MatchRepository,
            RawIdentity::ExactReference(raw) => {
                let named = self.named(at, &raw.docker_reference)?;
                if named.is_name_only() {
                    return Err(self.value(at, "dockerReference must have a tag or a digest"));
                }
                Identity::ExactReference(named)
            }
            RawIdentity::ExactRepository(raw) => {
                let named = self.named(at, &raw.docker_repository)?;
                if !named.is_name_only() {
                    return Err(self.value(at, "dockerRepository must not have a tag or a digest"));
                }
                Identity::ExactRepository(named.name)
            }
            RawIdentity::RemapIdentity(raw) => {
                for prefix in [&raw.prefix, &raw.signed_prefix] {
                    scope::check_prefix(prefix).map_err(|reason| self.value(at, reason))?;
                }
                Identity::Remap {
                    prefix: raw.prefix,
                    signed_prefix: raw.signed_prefix,
                }
            }
        })
    }

    fn named(&self, at: &str, text: &str) -> Result<Named, PolicyError> {
        Named::parse(text).map_err(|e| self.value(at, e.to_string()))
    }
}
