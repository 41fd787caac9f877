//! Who wants what: the last snapshot of each writer, and whose wish counts where two want the same object.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::disk::Entry;
use super::object::{Desired, Key, Origin, Writer};
use super::problem::Problem;

/// A wish and who has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Wanted {
    pub(super) writer: Writer,
    pub(super) desired: Desired,
}

/// A wish and who has it, borrowed.
#[derive(Debug, Clone, Copy)]
pub(super) struct WantedRef<'a> {
    writer: &'a Writer,
    desired: &'a Desired,
}

impl WantedRef<'_> {
    pub(super) fn to_wanted(self) -> Wanted {
        Wanted {
            writer: self.writer.clone(),
            desired: self.desired.clone(),
        }
    }
}

/// The last snapshot of each writer.
#[derive(Debug, Clone, Default)]
pub(super) struct Wishes {
    by_writer: BTreeMap<Writer, Vec<Desired>>,
}

impl Wishes {
    /// What anybody wants, also of what another has.
    pub(super) fn all(&self) -> impl Iterator<Item = &Desired> {
        self.by_writer.values().flatten()
    }

    /// What the writers wanted when the store was last used, as far as they got it.
    pub(super) fn remembered<'a>(entries: impl Iterator<Item = &'a Entry>) -> Self {
        let mut wishes = Self::default();
        for entry in entries {
            let object = &entry.object;
            let (writer, desired) = match &entry.successor {
                Some(wanted) => (&wanted.writer, wanted.desired.clone()),
                None if object.deletion.is_some() => continue,
                None => (
                    &object.writer,
                    Desired {
                        key: object.key.clone(),
                        origin: object.origin.clone(),
                        hash: object.hash.clone(),
                        body: object.body.clone(),
                    },
                ),
            };
            let of_writer = wishes.by_writer.entry(writer.clone()).or_default();
            of_writer.push(desired);
        }
        wishes
    }

    pub(super) fn replace(&mut self, writer: &Writer, desired: Vec<Desired>) {
        self.by_writer.insert(writer.clone(), desired);
    }

    pub(super) fn retain(&mut self, writers: &[Writer]) {
        self.by_writer.retain(|writer, _| writers.contains(writer));
    }

    pub(super) fn of(&self, writer: &Writer) -> &[Desired] {
        self.by_writer.get(writer).map_or(&[], Vec::as_slice)
    }

    /// For each object the wish that counts: that of its present holder, else the first in the order of writers
    /// and of their snapshots. All others are problems that name both.
    pub(super) fn winners<'a, 'h>(
        &'a self,
        holder: impl Fn(&Key) -> Option<(&'h Writer, &'h Origin)>,
    ) -> (BTreeMap<&'a Key, WantedRef<'a>>, Vec<Problem>) {
        let mut candidates: BTreeMap<&Key, Vec<WantedRef<'_>>> = BTreeMap::new();
        for (writer, all) in &self.by_writer {
            for desired in all {
                let of_key = candidates.entry(&desired.key).or_default();
                of_key.push(WantedRef { writer, desired });
            }
        }
        let mut winners = BTreeMap::new();
        let mut conflicts = Vec::new();
        for (key, of_key) in candidates {
            let holds = |wanted: &WantedRef<'_>| {
                holder(key).is_some_and(|(writer, origin)| {
                    writer == wanted.writer && origin.unit() == wanted.desired.origin.unit()
                })
            };
            let first = of_key.iter().position(holds).unwrap_or(0);
            let winner = of_key[first];
            winners.insert(key, winner);
            let losers = of_key.iter().enumerate().filter(|(at, _)| *at != first);
            conflicts.extend(losers.map(|(_, loser)| conflict(key, loser, &winner)));
        }
        (winners, conflicts)
    }
}

fn conflict(key: &Key, loser: &WantedRef<'_>, winner: &WantedRef<'_>) -> Problem {
    let of = |wanted: &WantedRef<'_>| format!("{} ({})", wanted.desired.origin, wanted.writer);
    Problem::new(
        loser.desired.origin.clone(),
        format!(
            "{key} is defined twice, by {} and by {}; the first one is used",
            of(winner),
            of(loser)
        ),
    )
    .object(Some(key.clone()))
    .field("metadata.name")
    .remedy("remove one of the two, or give it another name or namespace")
}
