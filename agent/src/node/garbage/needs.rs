//! Which images are needed, and which of the others goes first. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use podling_images::Digest;
use tokio::time::Instant;

use crate::node::config::GcConfig;

/// An image as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) digest: Digest,
    /// The true paths of its layers.
    pub(super) layers: BTreeSet<PathBuf>,
}

/// What images are needed by.
#[derive(Debug, Clone, Default)]
pub(super) struct Needs {
    /// The layers of each container that there is.
    pub(super) stacks: Vec<BTreeSet<PathBuf>>,
    /// What manifests name, by what the names mean now.
    pub(super) wanted: HashSet<Digest>,
    /// What is pinned.
    pub(super) pinned: HashSet<Digest>,
}

impl Needs {
    /// True when a container has all of the image's layers below it: then nothing would be freed.
    fn uses(&self, image: &Held) -> bool {
        let holds = |stack: &BTreeSet<PathBuf>| image.layers.is_subset(stack);
        self.stacks.iter().any(holds)
    }

    /// True when the image must stay.
    pub(super) fn keep(&self, image: &Held) -> bool {
        self.uses(image)
            || self.wanted.contains(&image.digest)
            || self.pinned.contains(&image.digest)
    }
}

/// When images were first and last seen; it begins anew with the agent.
#[derive(Debug)]
pub(super) struct Memory {
    begun: Instant,
    has_looked: bool,
    seen: HashMap<Digest, Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    first: Instant,
    used: Option<Instant>,
}

/// What can go and what cannot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// Unneeded and old enough, the longest unused first.
    pub(super) free: Vec<Digest>,
    /// How many of these nobody has used for longer than the maximum age.
    pub(super) overdue: usize,
    /// When the next unneeded image is old enough, or too old.
    pub(super) next: Option<Instant>,
    /// Why the others stay.
    pub(super) kept: Kept,
}

/// Numbers of images that stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) used: usize,
    pub(super) wanted: usize,
    pub(super) pinned: usize,
    pub(super) young: usize,
}

impl Memory {
    pub(super) fn new(begun: Instant) -> Self {
        Self {
            begun,
            has_looked: false,
            seen: HashMap::new(),
        }
    }

    /// Takes note of what is here and used now.
    pub(super) fn observe(&mut self, images: &[Held], needs: &Needs, now: Instant) {
        // What was here before the agent is as old as the agent: its sources have time to say what they want.
        let first = match std::mem::replace(&mut self.has_looked, true) {
            true => now,
            false => self.begun,
        };
        self.seen
            .retain(|digest, _| images.iter().any(|image| image.digest == *digest));
        for image in images {
            let seen = self.seen.entry(image.digest.clone());
            let seen = seen.or_insert(Seen { first, used: None });
            if needs.uses(image) {
                seen.used = Some(now);
            }
        }
    }

    /// What can go.
    pub(super) fn choose(
        &self,
        images: &[Held],
        needs: &Needs,
        config: &GcConfig,
        now: Instant,
    ) -> Choice {
        let mut choice = Choice::default();
        let mut free = Vec::new();
        for image in images {
            let seen = self.seen.get(&image.digest).copied().unwrap_or(Seen {
                first: now,
                used: None,
            });
            let old_from = seen.first + config.minimum_age.0;
            if needs.uses(image) {
                choice.kept.used += 1;
            } else if needs.wanted.contains(&image.digest) {
                choice.kept.wanted += 1;
            } else if needs.pinned.contains(&image.digest) {
                choice.kept.pinned += 1;
            } else if now < old_from {
                choice.kept.young += 1;
                choice.note_time(old_from);
            } else {
                free.push((seen.used, seen.first, image.digest.clone()));
            }
        }
        free.sort();
        if config.maximum_age.0 > Duration::ZERO {
            for (used, first, _) in &free {
                let due = used.unwrap_or(*first) + config.maximum_age.0;
                if due <= now {
                    choice.overdue += 1;
                } else {
                    choice.note_time(due);
                }
            }
        }
        choice.free = free.into_iter().map(|(_, _, digest)| digest).collect();
        choice
    }
}

impl Choice {
    fn note_time(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::config::Length;

    const MINUTE: Duration = Duration::from_secs(60);

    fn image(name: &str, layers: &[&str]) -> Held {
        Held {
            digest: Digest::sha256(name.as_bytes()),
            layers: layers.iter().map(PathBuf::from).collect(),
        }
    }

    fn running(image: &Held) -> Needs {
        Needs {
            stacks: vec![image.layers.clone()],
            ..Needs::default()
        }
    }

    fn names(choice: &Choice, images: &[Held]) -> Vec<usize> {
        let place = |digest: &Digest| images.iter().position(|image| image.digest == *digest);
        choice.free.iter().filter_map(place).collect()
    }

    #[test]
    fn the_longest_unused_image_goes_first() {
        let begun = Instant::now();
        let images = [image("a", &["1"]), image("b", &["2"]), image("c", &["3"])];
        let config = GcConfig::default();
        let mut memory = Memory::new(begun);
        memory.observe(&images, &running(&images[0]), begun + MINUTE);
        memory.observe(&images, &running(&images[1]), begun + 2 * MINUTE);
        let now = begun + 10 * MINUTE;
        memory.observe(&images, &Needs::default(), now);
        let choice = memory.choose(&images, &Needs::default(), &config, now);
        // Never used by this agent, then by the time of the last use.
        assert_eq!(names(&choice, &images), [2, 0, 1]);
        assert_eq!((choice.overdue, choice.next), (0, None));
    }

    #[test]
    fn what_is_used_named_or_pinned_stays() {
        let now = Instant::now();
        let below = ["used"];
        let images = ["used", "base", "wanted", "pinned", "free"].map(|name| {
            image(
                name,
                if name == "base" {
                    &below
                } else {
                    std::slice::from_ref(&name)
                },
            )
        });
        let needs = Needs {
            stacks: vec![["used", "more"].iter().map(PathBuf::from).collect()],
            wanted: HashSet::from([images[2].digest.clone()]),
            pinned: HashSet::from([images[3].digest.clone()]),
        };
        let mut memory = Memory::new(now);
        memory.observe(&images, &needs, now);
        let later = now + 2 * MINUTE;
        let choice = memory.choose(&images, &needs, &GcConfig::default(), later);
        assert_eq!(names(&choice, &images), [4]);
        let kept = Kept {
            used: 2,
            wanted: 1,
            pinned: 1,
            young: 0,
        };
        assert_eq!(choice.kept, kept);
        let keeps: Vec<bool> = images.iter().map(|image| needs.keep(image)).collect();
        assert_eq!(keeps, [true, true, true, true, false]);
    }

    #[test]
    fn an_image_that_has_just_come_stays_for_a_while() {
        let begun = Instant::now();
        let images = [image("old", &["1"]), image("new", &["2"])];
        let config = GcConfig::default();
        let mut memory = Memory::new(begun);
        memory.observe(&images[..1], &Needs::default(), begun);
        let came = begun + 5 * MINUTE;
        memory.observe(&images, &Needs::default(), came);
        let choice = memory.choose(&images, &Needs::default(), &config, came + MINUTE);
        assert_eq!(names(&choice, &images), [0]);
        assert_eq!(choice.next, Some(came + config.minimum_age.0));
        let later = memory.choose(&images, &Needs::default(), &config, came + 2 * MINUTE);
        assert_eq!(names(&later, &images), [0, 1]);
    }

    #[test]
    fn an_image_that_nobody_used_for_too_long_is_overdue() {
        let begun = Instant::now();
        let images = [image("a", &["1"]), image("b", &["2"])];
        let config = GcConfig {
            maximum_age: Length(10 * MINUTE),
            ..GcConfig::default()
        };
        let mut memory = Memory::new(begun);
        memory.observe(&images, &running(&images[1]), begun + 5 * MINUTE);
        let at = |minutes: u32| {
            let now = begun + minutes * MINUTE;
            memory.choose(&images, &Needs::default(), &config, now)
        };
        assert_eq!((at(9).overdue, at(9).next), (0, Some(begun + 10 * MINUTE)));
        assert_eq!(
            (at(10).overdue, at(10).next),
            (1, Some(begun + 15 * MINUTE))
        );
        assert_eq!(at(15).overdue, 2);
    }
}
