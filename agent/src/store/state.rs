//! [`Store`]: the objects in memory, kept equal to the disk.
//!
//! One lock orders writers and is held while a change is committed to disk; another guards what readers see and is
//! never held during I/O. A change is committed first and shown second, so that nothing runs that a power cut
//! would forget; who prepares what is to run may foresee it ([`super::coming`]).

mod observed;
mod steps;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use tokio::sync::watch;

use super::coming::{Coming, Foreseen};
use super::disk::{Commit, Disk, DiskError, Entry};
use super::object::{Body, Deletion, Desired, Key, Kind, Object, Origin, Writer};
use super::problem::Problem;
use super::watch::{Batch, Change, History, Watch, What};
use super::wishes::{self, Wishes};
use observed::keep_first_seen;
use steps::{Step, new_object, update, withdraw};

/// Versions are reserved on disk in blocks of this size, so that statuses, which only live in memory, can have
/// growing versions over restarts at the price of one disk write for each block.
const VERSION_BLOCK: u64 = 1_000_000;

/// What can go wrong with a change.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The change could not be made durable, and was not made.
    #[error("cannot write the object store")]
    Disk(#[from] DiskError),
    /// There is no such object.
    #[error("there is no {0}")]
    NotFound(Key),
    /// The object belongs to a file or to etcd and would come back.
    #[error("{key} is defined by {origin}: remove it there")]
    Held {
        /// The object.
        key: Key,
        /// Where it was written.
        origin: Origin,
    },
}

/// The object store. Cheap to clone; all clones are one store.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    node: String,
    /// What UIDs are made of, beside kind, namespace and name.
    uid_seed: String,
    path: Option<PathBuf>,
    /// Orders writers; None: this store lives in memory only.
    disk: Mutex<Option<Disk>>,
    state: RwLock<State>,
    latest: watch::Sender<u64>,
    coming: Coming,
}

#[derive(Debug)]
struct State {
    entries: BTreeMap<Key, Entry>,
    /// How many objects of this key have come and gone.
    incarnations: BTreeMap<Key, u64>,
    wishes: Wishes,
    statuses: HashMap<Key, (String, Arc<PodStatus>)>,
    /// Pods that end with the node, by UID.
    endings: HashMap<String, Timestamp>,
    problems: BTreeMap<String, Vec<Problem>>,
    conflicts: Vec<Problem>,
    version: u64,
    /// Versions up to this one are reserved on disk.
    reserved: u64,
    history: History,
}

impl Store {
    /// Opens or creates the store in the file `path`, for the node of this name. A file that cannot be read is
    /// moved aside, and the store starts empty.
    ///
    /// # Errors
    /// When the file cannot be created, or is in use by another process.
    pub fn open(path: &Path, node: &str) -> Result<Store, StoreError> {
        Self::open_seeded(path, node, node)
    }

    /// The same, for pods with UIDs made of another word than the node's name: they are no earlier node's pods.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_seeded(path: &Path, node: &str, uid_seed: &str) -> Result<Store, StoreError> {
        let (disk, loaded) = Disk::open(path)?;
        let mut state = State::new(loaded.version);
        state.reserved = loaded.version;
        state.incarnations = loaded.incarnations;
        state.wishes = Wishes::remembered(loaded.entries.values());
        state.entries = loaded.entries;
        Ok(Self::with(node, uid_seed, Some(disk), state))
    }

    /// A store that forgets everything at the end of the process.
    pub fn in_memory(node: &str) -> Store {
        let mut state = State::new(0);
        state.reserved = u64::MAX;
        Self::with(node, node, None, state)
    }

    fn with(node: &str, uid_seed: &str, disk: Option<Disk>, state: State) -> Store {
        let (latest, _) = watch::channel(state.version);
        Store {
            shared: Arc::new(Shared {
                node: node.to_owned(),
                uid_seed: uid_seed.to_owned(),
                path: disk.as_ref().map(|disk| disk.path().to_owned()),
                disk: Mutex::new(disk),
                state: RwLock::new(state),
                latest,
                coming: Coming::default(),
            }),
        }
    }

    /// The file; none of a store in memory.
    pub fn path(&self) -> Option<&Path> {
        self.shared.path.as_deref()
    }

    /// The name of the node.
    pub fn node(&self) -> &str {
        &self.shared.node
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<Object>> {
        let state = self.read();
        state.entries.get(key).map(|entry| entry.object.clone())
    }

    /// All objects of a kind, by namespace and name.
    pub fn list(&self, kind: Kind) -> Vec<Arc<Object>> {
        let first = Key::new(kind, "", "");
        self.read()
            .entries
            .range(first..)
            .take_while(|(key, _)| key.kind == kind)
            .map(|(_, entry)| entry.object.clone())
            .collect()
    }

    /// The version of the latest change.
    pub fn version(&self) -> u64 {
        self.read().version
    }

    /// Yields all changes from now on.
    pub fn watch(&self) -> Watch {
        // Subscribed first, so that a change in between is seen twice rather than never.
        let latest = self.shared.latest.subscribe();
        Watch::new(self.clone(), self.version(), latest)
    }

    /// Yields all changes after `version`.
    pub fn watch_from(&self, version: u64) -> Watch {
        Watch::new(self.clone(), version, self.shared.latest.subscribe())
    }

    /// The pods that the commit under way will bring.
    pub fn coming(&self) -> &Coming {
        &self.shared.coming
    }

    pub(super) fn changes_since(&self, version: u64) -> (Option<Batch>, u64) {
        let state = self.read();
        (state.history.since(version), state.version)
    }

    /// Takes all that `writer` wants: what it no longer names goes, what differs changes. Pods end gracefully.
    /// Blocks for a disk write if something changed.
    ///
    /// # Errors
    /// When the change cannot be made durable; then nothing changed.
    pub fn replace_writer(&self, writer: &Writer, desired: Vec<Desired>) -> Result<(), StoreError> {
        self.change_wishes(|wishes| wishes.replace(writer, desired))
    }

    /// Forgets all writers but these: their objects go. For the start of a node whose sources have changed.
    ///
    /// # Errors
    /// As [`Store::replace_writer`].
    pub fn retain_writers(&self, writers: &[Writer]) -> Result<(), StoreError> {
        self.change_wishes(|wishes| wishes.retain(writers))
    }

    /// What `writer` wanted last, also before a restart: what a broken file or an absent etcd said when it was
    /// last understood.
    pub fn wanted_by(&self, writer: &Writer) -> Vec<Desired> {
        self.read().wishes.of(writer).to_vec()
    }

    /// The images that pods name: those that are there, and all that writers want.
    pub fn image_names(&self) -> BTreeSet<String> {
        let state = self.read();
        let there = state.entries.values().map(|entry| &entry.object.body);
        let bodies = there.chain(state.wishes.all().map(|desired| &desired.body));
        let pods = bodies.filter_map(|body| match body {
            Body::Pod(pod) => pod.spec.as_ref(),
            Body::ConfigMap(_) | Body::Secret(_) | Body::Namespace(_) => None,
        });
        let containers = pods.flat_map(|spec| {
            let init = spec.init_containers.iter().flatten();
            init.chain(&spec.containers)
        });
        containers.filter_map(|c| c.image.clone()).collect()
    }

    fn change_wishes(&self, edit: impl FnOnce(&mut Wishes)) -> Result<(), StoreError> {
        let mut disk = self.lock_disk();
        let (wishes, steps, conflicts) = {
            let state = self.read();
            let mut wishes = state.wishes.clone();
            edit(&mut wishes);
            let (winners, conflicts) = wishes.winners(|key| state.holder(key));
            let steps = state.plan(&winners, &self.shared.uid_seed);
            (wishes, steps, conflicts)
        };
        self.commit(&mut disk, steps)?;
        let mut state = self.write();
        state.wishes = wishes;
        state.conflicts = keep_first_seen(&state.conflicts, conflicts);
        Ok(())
    }

    /// Ends a pod. One that a file or etcd still wants comes back afterwards, with another UID. Asked again, the
    /// shorter grace counts. `grace_secs` None: the pod's own.
    ///
    /// # Errors
    /// When there is no such object, when it is not a pod and belongs to a file or etcd, or when the change cannot
    /// be made durable.
    pub fn delete(&self, key: &Key, grace_secs: Option<u64>) -> Result<Arc<Object>, StoreError> {
        let mut disk = self.lock_disk();
        let step = {
            let state = self.read();
            let entry = state.entries.get(key);
            let entry = entry.ok_or_else(|| StoreError::NotFound(key.clone()))?;
            if key.kind != Kind::Pod {
                return Err(StoreError::Held {
                    key: key.clone(),
                    origin: entry.object.origin.clone(),
                });
            }
            let (winners, _) = state.wishes.winners(|key| state.holder(key));
            let asked = Deletion {
                requested_at: Timestamp::now(),
                grace_secs,
            };
            let deletion = match entry.object.deletion {
                None => asked,
                Some(before) => Deletion {
                    requested_at: before.requested_at,
                    grace_secs: shorter(before.grace_secs, grace_secs),
                },
            };
            let mut object = (*entry.object).clone();
            object.deletion = Some(deletion);
            Step::Put {
                entry: Entry {
                    object: Arc::new(object),
                    successor: winners.get(key).map(|wanted| wanted.to_wanted()),
                },
                shows: true,
            }
        };
        self.commit(&mut disk, vec![(key.clone(), step)])?;
        self.get(key)
            .ok_or_else(|| StoreError::NotFound(key.clone()))
    }

    /// Removes a pod that has a deletion and has ended; its successor, if any, appears. False: there is no such
    /// pod with this UID that is being deleted.
    ///
    /// # Errors
    /// When the change cannot be made durable.
    pub fn finalize(&self, key: &Key, uid: &str) -> Result<bool, StoreError> {
        let mut disk = self.lock_disk();
        let step = {
            let state = self.read();
            let Some(entry) = state.entries.get(key) else {
                return Ok(false);
            };
            if entry.object.uid != uid || entry.object.deletion.is_none() {
                return Ok(false);
            }
            let incarnation = state.incarnations.get(key).map_or(1, |count| count + 1);
            let successor = entry.successor.as_ref().map(|wanted| Entry {
                object: Arc::new(new_object(&self.shared.uid_seed, wanted, incarnation)),
                successor: None,
            });
            Step::Remove { successor }
        };
        self.commit(&mut disk, vec![(key.clone(), step)])?;
        Ok(true)
    }

    /// Makes steps durable, then visible.
    fn commit(
        &self,
        disk: &mut MutexGuard<'_, Option<Disk>>,
        steps: Vec<(Key, Step)>,
    ) -> Result<(), StoreError> {
        let (version, reserved) = {
            let state = self.read();
            (state.version, state.reserved)
        };
        // A step makes at most two changes; statuses may take versions meanwhile, hence half a block of room.
        let needed = version.saturating_add(2 * steps.len() as u64 + VERSION_BLOCK / 2);
        let reserve = (needed > reserved).then(|| needed + VERSION_BLOCK);
        if steps.is_empty() && reserve.is_none_or(|_| version < reserved) {
            return Ok(());
        }
        // Until the end of this function: the change is there then, or has failed.
        let _coming = disk.as_ref().map(|_| self.foresee(&steps));
        if let Some(disk) = disk.as_mut() {
            let mut commit = Commit {
                reserve,
                ..Commit::default()
            };
            for (key, step) in &steps {
                match step {
                    Step::Put { entry, .. } => commit.put.push((key, entry)),
                    Step::Remove { successor } => {
                        commit.incarnations.push((key, self.incarnation(key) + 1));
                        match successor {
                            Some(entry) => commit.put.push((key, entry)),
                            None => commit.removed.push(key),
                        }
                    }
                }
            }
            disk.commit(&commit)?;
        }
        let mut state = self.write();
        state.reserved = reserve.unwrap_or(reserved);
        for (key, step) in steps {
            state.apply(key, step);
        }
        let version = state.version;
        drop(state);
        self.shared.latest.send_replace(version);
        Ok(())
    }

    /// Tells of new pods. Only where nothing else changes: a pod may need what comes with it.
    fn foresee(&self, steps: &[(Key, Step)]) -> Foreseen<'_> {
        let state = self.read();
        let new_pod = |(key, step): &(Key, Step)| match step {
            Step::Put { entry, .. } => (key.kind == Kind::Pod && !state.entries.contains_key(key))
                .then(|| entry.object.clone()),
            Step::Remove { .. } => None,
        };
        let pods: Option<Vec<Arc<Object>>> = steps.iter().map(new_pod).collect();
        drop(state);
        self.shared.coming.announce(pods.unwrap_or_default())
    }

    fn incarnation(&self, key: &Key) -> u64 {
        self.read().incarnations.get(key).copied().unwrap_or(0)
    }

    // A panic while a lock is held leaves whole values behind: each change below is one assignment of a
    // finished value, so a poisoned lock is as good as any.
    fn lock_disk(&self) -> MutexGuard<'_, Option<Disk>> {
        let lock = self.shared.disk.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        let lock = self.shared.state.read();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        let lock = self.shared.state.write();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn set_history_limit(&self, limit: usize) {
        self.write().history.set_limit(limit);
    }
}

impl State {
    fn new(version: u64) -> Self {
        Self {
            entries: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            wishes: Wishes::default(),
            statuses: HashMap::new(),
            endings: HashMap::new(),
            problems: BTreeMap::new(),
            conflicts: Vec::new(),
            version,
            reserved: 0,
            history: History::new(version),
        }
    }

    /// Who has the object now: a wish that comes later does not take it away.
    fn holder(&self, key: &Key) -> Option<(&Writer, &Origin)> {
        let entry = self.entries.get(key)?;
        match &entry.successor {
            Some(wanted) => Some((&wanted.writer, &wanted.desired.origin)),
            None if entry.object.deletion.is_some() => None,
            None => Some((&entry.object.writer, &entry.object.origin)),
        }
    }

    /// What has to change for the winners, and only them, to be there.
    fn plan(
        &self,
        winners: &BTreeMap<&Key, wishes::WantedRef<'_>>,
        uid_seed: &str,
    ) -> Vec<(Key, Step)> {
        let mut steps = Vec::new();
        for (key, wanted) in winners {
            let key: &Key = key;
            let step = match self.entries.get(key) {
                None => {
                    let incarnation = self.incarnations.get(key).copied().unwrap_or(0);
                    Some(Step::Put {
                        entry: Entry {
                            object: Arc::new(new_object(
                                uid_seed,
                                &wanted.to_wanted(),
                                incarnation,
                            )),
                            successor: None,
                        },
                        shows: true,
                    })
                }
                Some(entry) => update(entry, wanted.to_wanted()),
            };
            steps.extend(step.map(|step| (key.clone(), step)));
        }
        for (key, entry) in &self.entries {
            if !winners.contains_key(key) {
                steps.extend(withdraw(key, entry).map(|step| (key.clone(), step)));
            }
        }
        steps
    }

    fn apply(&mut self, key: Key, step: Step) {
        match step {
            Step::Put { entry, shows } => self.put(key, entry, shows),
            Step::Remove { successor } => {
                if let Some(gone) = self.entries.remove(&key) {
                    self.endings.remove(&gone.object.uid);
                }
                self.statuses.remove(&key);
                *self.incarnations.entry(key.clone()).or_default() += 1;
                self.record(key.clone(), What::Removed);
                if let Some(entry) = successor {
                    self.put(key, entry, true);
                }
            }
        }
    }

    fn put(&mut self, key: Key, mut entry: Entry, shows: bool) {
        if shows {
            self.record(key.clone(), What::Object);
            let mut object = Arc::unwrap_or_clone(entry.object);
            object.resource_version = self.version;
            entry.object = Arc::new(object);
        }
        self.entries.insert(key, entry);
    }

    fn record(&mut self, key: Key, what: What) {
        self.version += 1;
        self.history.push(Change {
            resource_version: self.version,
            key,
            what,
        });
    }
}

/// The shorter of two grace periods; None is the pod's own, which an explicit one overrides.
fn shorter(before: Option<u64>, now: Option<u64>) -> Option<u64> {
    match (before, now) {
        (Some(before), Some(now)) => Some(before.min(now)),
        (before, now) => before.or(now),
    }
}
