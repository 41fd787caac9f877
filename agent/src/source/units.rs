//! What a source said, one unit (a file, a key) at a time, with the last good version of each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use podling_runtime::chain;

use crate::manifest;
use crate::store::{Desired, Origin, Problem, Store, StoreError, Writer};

/// What a source said.
#[derive(Debug)]
pub(super) struct Units {
    store: Store,
    writer: Writer,
    units: BTreeMap<Origin, Unit>,
    /// Problems of the source as a whole.
    troubles: Vec<Problem>,
    /// Why the store did not take it the last time.
    unstored: Option<Problem>,
    unpublished: bool,
}

#[derive(Debug, Default)]
struct Unit {
    /// The text that was read last, to do nothing when it is read again.
    text: Option<String>,
    /// The last good version.
    objects: Vec<Desired>,
    problems: Vec<Problem>,
}

impl Units {
    /// What the writer said before a restart.
    pub(super) fn remembered(store: &Store, writer: &Writer) -> Self {
        let mut units: BTreeMap<Origin, Unit> = BTreeMap::new();
        for desired in store.wanted_by(writer) {
            let unit = units.entry(desired.origin.unit()).or_default();
            unit.objects.push(desired);
        }
        Self {
            store: store.clone(),
            writer: writer.clone(),
            units,
            troubles: Vec::new(),
            unstored: None,
            // Problems are not remembered, so there is always something to say.
            unpublished: true,
        }
    }

    /// A unit has this text now.
    pub(super) fn set(&mut self, origin: &Origin, bytes: &[u8]) {
        let Ok(text) = std::str::from_utf8(bytes) else {
            let problem = Problem::new(origin.clone(), "this is not UTF-8 text");
            return self.fail(origin, problem);
        };
        let unit = self.units.entry(origin.unit()).or_default();
        if unit.text.as_deref() == Some(text) {
            return;
        }
        unit.text = Some(text.to_owned());
        self.unpublished = true;
        match manifest::parse(text, origin, self.store.node()) {
            Ok(objects) => {
                unit.objects = objects;
                unit.problems.clear();
            }
            Err(problems) => {
                for problem in &problems {
                    tracing::warn!(%problem, "manifest refused");
                }
                unit.problems = problems;
            }
        }
    }

    /// A unit is there and cannot be read.
    pub(super) fn fail(&mut self, origin: &Origin, problem: Problem) {
        let unit = self.units.entry(origin.unit()).or_default();
        unit.text = None;
        if !unit.problems.iter().any(|known| known.is_same(&problem)) {
            tracing::warn!(%problem, "manifest not read");
        }
        unit.problems = vec![problem];
        self.unpublished = true;
    }

    /// True for a unit that is there and could not be read.
    pub(super) fn is_unread(&self, origin: &Origin) -> bool {
        let unit = self.units.get(&origin.unit());
        unit.is_some_and(|unit| unit.text.is_none())
    }

    /// A unit is gone.
    pub(super) fn remove(&mut self, origin: &Origin) {
        self.unpublished |= self.units.remove(&origin.unit()).is_some();
    }

    /// All units but these are gone.
    pub(super) fn retain(&mut self, origins: &BTreeSet<Origin>) {
        let before = self.units.len();
        self.units.retain(|origin, _| origins.contains(origin));
        self.unpublished |= self.units.len() != before;
    }

    /// The source as a whole is in trouble, or no longer; true when that is news.
    pub(super) fn set_trouble(&mut self, trouble: Option<Problem>) -> bool {
        if trouble.is_none() && self.troubles.is_empty() {
            return false;
        }
        if let Some(trouble) = &trouble
            && self.troubles.iter().any(|known| known.is_same(trouble))
        {
            return false;
        }
        self.troubles = trouble.into_iter().collect();
        self.unpublished = true;
        true
    }

    /// Tells the store, if there is something to tell. Blocks for a disk write.
    pub(super) fn publish(&mut self) -> Result<(), StoreError> {
        if !self.unpublished {
            return Ok(());
        }
        self.tell_problems();
        let objects = self.units.values().flat_map(|unit| &unit.objects);
        let objects = objects.cloned().collect();
        let stored = self.store.replace_writer(&self.writer, objects);
        let before = self.unstored.take();
        match &stored {
            Err(error) => {
                let origin = Origin::file(self.store.path().unwrap_or(Path::new("")));
                let message = format!("cannot store what the manifests say: {}", chain(error));
                let remedy = "make space on its file system, or let it be written to; what ran before goes on";
                self.unstored = Some(Problem::new(origin, message).remedy(remedy));
                self.tell_problems();
            }
            Ok(_) if before.is_some() => self.tell_problems(),
            Ok(_) => {}
        }
        stored?;
        self.unpublished = false;
        Ok(())
    }

    fn tell_problems(&self) {
        let problems = self.units.values().flat_map(|unit| &unit.problems);
        let whole = self.unstored.iter().chain(&self.troubles);
        let problems = whole.chain(problems).cloned().collect();
        self.store.set_problems(self.writer.name(), problems);
    }
}
