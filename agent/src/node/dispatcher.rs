//! One task that watches the store and owns the pod workers.
//!
//! A worker is told *that* something may have changed, never what: it looks for itself. The worker of a new pod begins
//! while the pod is being stored, and waits before its containers would start.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::handle::Shutdown;
use crate::pod::context::Context;
use crate::pod::status;
use crate::pod::tiers::Tiers;
use crate::pod::worker::{News, Order, Worker};
use crate::store::{Batch, Change, Key, Kind, Object, What};

/// A worker that failed is not started again at once: it may fail for ever.
const RESTART_DELAY: Duration = Duration::from_secs(5);

/// The running dispatcher.
#[derive(Debug)]
pub(super) struct Handle {
    orders: mpsc::Sender<(Shutdown, oneshot::Sender<()>)>,
}

impl Handle {
    /// Ends the workers; returns when the last is done.
    pub(super) async fn shutdown(&self, mode: Shutdown) {
        let (done, wait) = oneshot::channel();
        if self.orders.send((mode, done)).await.is_ok() {
            // An error means that the dispatcher has ended, and with it its workers.
            wait.await.unwrap_or_default();
        }
    }
}

/// A worker of the table.
struct Entry {
    key: Option<Key>,
    news: watch::Sender<News>,
    /// The worker began with this generation of the pod before that was stored, and need not be told when it is.
    foreseen: Option<u64>,
}

struct Dispatcher {
    context: Arc<Context>,
    /// By UID.
    workers: HashMap<String, Entry>,
    tasks: JoinSet<String>,
    tiers: Tiers,
    ending: Option<Order>,
    waiting: Vec<oneshot::Sender<()>>,
}

/// Starts a worker for each pod of the store and for each leftover of others, then follows the store.
pub(super) async fn spawn(context: Arc<Context>) -> Handle {
    // A shutdown and a hurried one: nobody asks for more.
    let (orders, receiver) = mpsc::channel(4);
    let mut watch = context.store.watch();
    let mut coming = context.store.coming().watch();
    let mut dispatcher = Dispatcher {
        context,
        workers: HashMap::new(),
        tasks: JoinSet::new(),
        tiers: Tiers::default(),
        ending: None,
        waiting: Vec::new(),
    };
    dispatcher.sync_all();
    dispatcher.share_out().await;
    dispatcher.adopt_orphans().await;
    tokio::spawn(async move { dispatcher.run(&mut watch, &mut coming, receiver).await });
    Handle { orders }
}

impl Dispatcher {
    async fn run(
        mut self,
        watch: &mut crate::store::Watch,
        coming: &mut watch::Receiver<Vec<Arc<Object>>>,
        mut orders: mpsc::Receiver<(Shutdown, oneshot::Sender<()>)>,
    ) {
        loop {
            tokio::select! {
                batch = watch.next() => {
                    self.follow(batch);
                    self.share_out().await;
                }
                Ok(()) = coming.changed() => {
                    let pods = coming.borrow_and_update().clone();
                    self.foresee(&pods);
                }
                Some((mode, done)) = orders.recv() => self.end(mode, done),
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => self.reap(ended),
            }
            if self.ending.is_some() && self.tasks.is_empty() {
                for done in self.waiting.drain(..) {
                    // Whoever asked may have gone.
                    done.send(()).unwrap_or_default();
                }
                if self.ending == Some(Order::Leave) {
                    return;
                }
            }
        }
    }

    fn follow(&mut self, batch: Batch) {
        match batch {
            Batch::Relist => {
                self.poke(|_| true);
                self.sync_all();
            }
            Batch::Changes(changes) => {
                let mut pods = BTreeSet::new();
                let mut namespaces = HashSet::new();
                for Change { key, what, .. } in changes {
                    if key.kind == Kind::Pod {
                        self.weigh(&key);
                    }
                    match (key.kind, what) {
                        (Kind::Pod, What::Object | What::Removed) => {
                            pods.insert(key);
                        }
                        (Kind::ConfigMap | Kind::Secret, What::Object | What::Removed) => {
                            namespaces.insert(key.namespace);
                        }
                        (Kind::Namespace, _) | (_, What::Status) => {}
                    }
                }
                self.arrive(&mut pods);
                // First those that are there: a new worker looks by itself.
                self.poke(|entry| {
                    entry.key.as_ref().is_some_and(|key| {
                        pods.contains(key) || namespaces.contains(&key.namespace)
                    })
                });
                for key in &pods {
                    self.sync(key);
                }
            }
        }
    }

    /// Starts workers for pods that are being stored: they prepare what they can.
    fn foresee(&mut self, pods: &[Arc<Object>]) {
        for pod in pods {
            match self.workers.get_mut(&pod.uid) {
                // It was coming before, and was not stored: its worker takes back what it prepared.
                Some(entry) => entry.foreseen = None,
                None if self.ending.is_some() => {}
                None => {
                    self.start(Some(pod.key.clone()), pod.uid.clone());
                    if let Some(entry) = self.workers.get_mut(&pod.uid) {
                        entry.foreseen = Some(pod.generation);
                    }
                }
            }
        }
    }

    /// Leaves out of `pods` those that were foreseen and are in the store now as they were then.
    fn arrive(&mut self, pods: &mut BTreeSet<Key>) {
        for (uid, entry) in &mut self.workers {
            let Some(key) = entry.key.as_ref().filter(|key| pods.contains(key)) else {
                continue;
            };
            let Some(generation) = entry.foreseen.take() else {
                continue;
            };
            let stored = self.context.store.get(key);
            if stored.is_some_and(|object| {
                object.uid == *uid && object.generation == generation && object.deletion.is_none()
            }) {
                pods.remove(key);
            }
        }
    }

    fn sync_all(&mut self) {
        for object in self.context.store.list(Kind::Pod) {
            self.sync(&object.key);
            self.weigh(&object.key);
        }
    }

    /// Takes note of what a pod asks of the CPU: nothing once it has come to its end.
    fn weigh(&mut self, key: &Key) {
        let store = &self.context.store;
        let is_over = store.status(key).is_some_and(|s| status::is_terminal(&s));
        let pod = store
            .get(key)
            .filter(|_| !is_over)
            .and_then(|object| object.to_pod(None));
        match pod.and_then(|pod| pod.spec) {
            Some(spec) => self.tiers.note(key, &spec),
            None => self.tiers.forget(key),
        }
    }

    /// Shares out the CPU between the classes of pods. A node that ends makes no cgroups.
    async fn share_out(&mut self) {
        if self.ending.is_none() {
            self.tiers.apply(&self.context).await;
        }
    }

    /// Sees to it that a pod of the store has a worker.
    fn sync(&mut self, key: &Key) {
        if self.ending.is_some() {
            return;
        }
        if let Some(object) = self.context.store.get(key)
            && !self.workers.contains_key(&object.uid)
        {
            self.start(Some(key.clone()), object.uid.clone());
        }
    }

    fn start(&mut self, key: Option<Key>, uid: String) {
        let (news, receiver) = watch::channel(News {
            order: Order::Follow,
            pokes: 0,
        });
        let worker = Worker::new(
            Arc::clone(&self.context),
            key.clone(),
            uid.clone(),
            receiver,
        );
        let entry = Entry {
            key,
            news,
            foreseen: None,
        };
        self.workers.insert(uid.clone(), entry);
        self.tasks.spawn(async move {
            if let Err(error) = tokio::spawn(worker.run()).await {
                // A new worker finds out by itself what has been done.
                tracing::error!(uid, %error, "the pod's worker failed");
                tokio::time::sleep(RESTART_DELAY).await;
            }
            uid
        });
    }

    fn poke(&self, whom: impl Fn(&Entry) -> bool) {
        for entry in self.workers.values().filter(|entry| whom(entry)) {
            entry.news.send_modify(|news| news.pokes += 1);
        }
    }

    fn reap(&mut self, ended: Result<String, tokio::task::JoinError>) {
        let uid = match ended {
            Ok(uid) => uid,
            Err(error) => {
                tracing::error!(%error, "a pod worker was lost");
                return;
            }
        };
        let Some(entry) = self.workers.remove(&uid) else {
            return;
        };
        // The pod may have come back while its worker was ending.
        if let Some(key) = entry.key {
            self.sync(&key);
        }
    }

    fn end(&mut self, mode: Shutdown, done: oneshot::Sender<()>) {
        let order = match (mode, self.ending) {
            (Shutdown::LeavePods, _) => Order::Leave,
            (Shutdown::TerminatePods, None) => Order::Terminate { now: false },
            (Shutdown::TerminatePods, Some(_)) => Order::Terminate { now: true },
        };
        self.ending = Some(order);
        self.waiting.push(done);
        if mode == Shutdown::TerminatePods {
            self.announce_ends();
        }
        for entry in self.workers.values() {
            entry.news.send_modify(|news| news.order = order);
        }
    }

    /// Has all pods that have not come to an end of their own shown as terminating, before their containers end.
    fn announce_ends(&self) {
        let store = &self.context.store;
        for object in store.list(Kind::Pod) {
            let is_over = store
                .status(&object.key)
                .is_some_and(|status| status::is_terminal(&status));
            if !is_over {
                store.set_ending(&object.key, &object.uid);
            }
        }
    }

    /// Starts workers for directories of pods that the store does not know; they end the pods and clear up. Takes
    /// back the network of pods that left nothing else.
    async fn adopt_orphans(&mut self) {
        let config = &self.context.config;
        let mut orphans = BTreeSet::new();
        for dir in [config.pods_run_dir(), config.pods_data_dir()] {
            orphans.extend(names_in(&dir));
        }
        for uid in orphans {
            if !self.workers.contains_key(&uid) {
                tracing::info!(uid, "clearing up after a pod that nobody wants any more");
                self.start(None, uid);
            }
        }
        let known: HashSet<String> = self.workers.keys().cloned().collect();
        if let Err(error) = self.context.network.retain(&known).await {
            tracing::warn!(%error, "networks of former pods stay");
        }
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
