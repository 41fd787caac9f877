//! Desired state on disk: `store.redb`.
//!
//! ```text
//! objects       "Kind/namespace/name" -> JSON of the object and of the successor that waits for its end
//! incarnations  "Kind/namespace/name" -> how many objects of this key have come and gone
//! meta          "format" -> 1, "reserved" -> resource versions up to this one may have been given out
//! ```
//!
//! redb is copy-on-write with checksums: a commit is there wholly or not at all after a power cut. A file that
//! cannot be read is moved aside, for people to look at, and the sources fill a new one.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use serde::{Deserialize, Serialize};

use super::object::{Key, Kind, Object};
use super::opening::Opening;
use super::wishes::Wanted;

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const INCARNATIONS: TableDefinition<'_, &str, u64> = TableDefinition::new("incarnations");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// The version of the layout above.
const FORMAT: u64 = 1;
/// All objects are in memory anyway: redb only needs room for the pages of one commit.
const CACHE_BYTES: usize = 1 << 20;
/// Counters of objects that are gone are kept up to this many, so that endless new names do not fill the disk.
const INCARNATIONS_MAX: usize = 10_000;

/// What can go wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Another process has it open.
    #[error("{path} is in use by another process", path = .0.display())]
    InUse(PathBuf),
    /// It could not be opened or created.
    #[error("cannot open {path}", path = .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
    /// A damaged file could not be moved aside.
    #[error("cannot move the damaged {path} aside", path = .path.display())]
    MoveAside {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was written by a later version.
    #[error("{path} has format {found}, this version reads {FORMAT}", path = .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// A commit failed.
    #[error("cannot commit to {path}", path = .path.display())]
    Commit {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
    /// An object could not be put into words.
    #[error("cannot encode {0}")]
    Encode(Key, #[source] serde_json::Error),
}

/// An object with what waits for its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) object: Arc<Object>,
    pub(super) successor: Option<Wanted>,
}

/// What the file says.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) entries: BTreeMap<Key, Entry>,
    pub(super) incarnations: BTreeMap<Key, u64>,
    pub(super) version: u64,
}

/// A change, made at once or not at all.
#[derive(Debug, Default)]
pub(super) struct Commit<'a> {
    pub(super) put: Vec<(&'a Key, &'a Entry)>,
    pub(super) removed: Vec<&'a Key>,
    pub(super) incarnations: Vec<(&'a Key, u64)>,
    pub(super) reserve: Option<u64>,
}

/// The open file.
#[derive(Debug)]
pub(super) struct Disk {
    path: PathBuf,
    /// None after an error of the disk: redb takes nothing more then until it is opened again.
    database: Option<Database>,
}

/// Why a file is not used as it is.
enum Unusable {
    Damaged(String),
    Fatal(DiskError),
}

impl Disk {
    /// Opens the file or makes it. A damaged one is moved aside.
    pub(super) fn open(path: &Path) -> Result<(Disk, Loaded), DiskError> {
        let opening = Opening::begin(path);
        let opened = if opening.is_hopeless() && path.exists() {
            Err(Unusable::Damaged(
                "opening it has ended the agent again and again".to_owned(),
            ))
        } else {
            Self::try_open(path)
        };
        opening.survived();
        match opened {
            Ok(opened) => Ok(opened),
            Err(Unusable::Fatal(error)) => Err(error),
            Err(Unusable::Damaged(reason)) => {
                let aside =
                    path.with_extension(format!("damaged-{}", Timestamp::now().as_second()));
                std::fs::rename(path, &aside).map_err(|source| DiskError::MoveAside {
                    path: path.to_owned(),
                    source,
                })?;
                tracing::error!(
                    file = %path.display(),
                    kept_as = %aside.display(),
                    reason,
                    "the object store is damaged: starting with an empty one, which the manifests fill again"
                );
                Self::try_open(path).map_err(|unusable| match unusable {
                    Unusable::Fatal(error) => error,
                    Unusable::Damaged(reason) => DiskError::Open {
                        path: path.to_owned(),
                        source: Box::new(redb::Error::Corrupted(reason)),
                    },
                })
            }
        }
    }

    fn try_open(path: &Path) -> Result<(Disk, Loaded), Unusable> {
        let database = open(path).map_err(|error| classify(path, error))?;
        let loaded = Self::load(path, &database)?;
        let disk = Disk {
            path: path.to_owned(),
            database: Some(database),
        };
        Ok((disk, loaded))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn load(path: &Path, database: &Database) -> Result<Loaded, Unusable> {
        let fail = |error: redb::Error| classify(path, error);
        let mut loaded = Loaded::default();
        let transaction = database.begin_read().map_err(|e| fail(e.into()))?;
        let meta = match transaction.open_table(META) {
            Ok(meta) => meta,
            // A new file.
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(loaded),
            Err(error) => return Err(fail(error.into())),
        };
        let read = |name| -> Result<u64, Unusable> {
            let value = meta.get(name).map_err(|e| fail(e.into()))?;
            Ok(value.map_or(0, |value| value.value()))
        };
        let found = read("format")?;
        if found != FORMAT {
            return Err(Unusable::Fatal(DiskError::Format {
                path: path.to_owned(),
                found,
            }));
        }
        loaded.version = read("reserved")?;
        let objects = transaction
            .open_table(OBJECTS)
            .map_err(|e| fail(e.into()))?;
        for row in objects.iter().map_err(|e| fail(e.into()))? {
            let (name, json) = row.map_err(|e| fail(e.into()))?;
            let entry: Entry = serde_json::from_slice(json.value())
                .map_err(|error| Unusable::Damaged(format!("object {}: {error}", name.value())))?;
            loaded.entries.insert(entry.object.key.clone(), entry);
        }
        let counters = transaction
            .open_table(INCARNATIONS)
            .map_err(|e| fail(e.into()))?;
        for row in counters.iter().map_err(|e| fail(e.into()))? {
            let (name, count) = row.map_err(|e| fail(e.into()))?;
            let key = parse_row_name(name.value())
                .ok_or_else(|| Unusable::Damaged(format!("counter {}", name.value())))?;
            loaded.incarnations.insert(key, count.value());
        }
        Ok(loaded)
    }

    /// Makes a change durable.
    pub(super) fn commit(&mut self, commit: &Commit<'_>) -> Result<(), DiskError> {
        let mut rows = Vec::with_capacity(commit.put.len());
        for (key, entry) in &commit.put {
            let json = serde_json::to_vec(entry)
                .map_err(|source| DiskError::Encode((*key).clone(), source))?;
            rows.push((row_name(key), json));
        }
        let written = self.write(commit, &rows);
        if let Err(redb::Error::Io(_) | redb::Error::PreviousIo) = &written {
            self.database = None;
        }
        written.map_err(|error| DiskError::Commit {
            path: self.path.clone(),
            source: Box::new(error),
        })
    }

    fn write(
        &mut self,
        commit: &Commit<'_>,
        rows: &[(String, Vec<u8>)],
    ) -> Result<(), redb::Error> {
        let database = match self.database.take() {
            Some(database) => database,
            None => open(&self.path)?,
        };
        let transaction = self.database.insert(database).begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert("format", FORMAT)?;
            if let Some(reserved) = commit.reserve {
                meta.insert("reserved", reserved)?;
            }
            let mut objects = transaction.open_table(OBJECTS)?;
            for (name, json) in rows {
                objects.insert(name.as_str(), json.as_slice())?;
            }
            for key in &commit.removed {
                objects.remove(row_name(key).as_str())?;
            }
            let mut counters = transaction.open_table(INCARNATIONS)?;
            for (key, count) in &commit.incarnations {
                counters.insert(row_name(key).as_str(), count)?;
            }
            let excess = (counters.len()? as usize).saturating_sub(INCARNATIONS_MAX);
            if excess > 0 {
                // Any that belong to no object will do: a lost counter only repeats an old UID.
                let unused = counters.iter()?.filter_map(|row| match row {
                    Ok((name, _)) => match objects.get(name.value()) {
                        Ok(None) => Some(Ok(name.value().to_owned())),
                        Ok(Some(_)) => None,
                        Err(error) => Some(Err(error)),
                    },
                    Err(error) => Some(Err(error)),
                });
                let unused: Vec<String> = unused.take(excess).collect::<Result<_, _>>()?;
                for name in unused {
                    counters.remove(name.as_str())?;
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

fn open(path: &Path) -> Result<Database, redb::Error> {
    let mut builder = Database::builder();
    Ok(builder.set_cache_size(CACHE_BYTES).create(path)?)
}

/// Tells a damaged file, which is replaced, from a failing disk or a missing permission, which is reported.
fn classify(path: &Path, error: redb::Error) -> Unusable {
    match error {
        redb::Error::DatabaseAlreadyOpen => Unusable::Fatal(DiskError::InUse(path.to_owned())),
        redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::RepairAborted
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableDoesNotExist(_) => Unusable::Damaged(error.to_string()),
        redb::Error::Io(ref io)
            if matches!(
                io.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            Unusable::Damaged(error.to_string())
        }
        error => Unusable::Fatal(DiskError::Open {
            path: path.to_owned(),
            source: Box::new(error),
        }),
    }
}

fn row_name(key: &Key) -> String {
    format!("{}/{}/{}", key.kind, key.namespace, key.name)
}

fn parse_row_name(row: &str) -> Option<Key> {
    let mut parts = row.splitn(3, '/');
    let kind: Kind = parts.next()?.parse().ok()?;
    Some(Key::new(kind, parts.next()?, parts.next()?))
}
