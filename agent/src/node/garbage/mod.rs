//! Garbage collection of images, with the kubelet's rules.
//!
//! ```text
//!  a pull ended ───┐                    ┌─ the file system is as full as the high threshold ─► down to the low one
//!  a pod is gone ──┼─► look around ─────┼─ a pull found it full ─────────────────────────────► all that is unneeded
//!  five minutes ───┘                    └─ an image is older than the maximum age ───────────► that image
//! ```
//!
//! One task owns the memory of when images were used, and removes. An image is needed while a container's plan has its
//! layers, while a manifest of the store names it, or when it is pinned ([`needs`] has the rules). The records of images
//! go one by one, each under a lock that a pod takes to look for its image: either the pod's manifest is known before
//! the image goes, and it stays, or the pod finds it gone and pulls it. Layers go after their records, by
//! [`ImageStore::gc`](podling_images::ImageStore::gc).
//!
//! Absent on purpose: nothing is written while nothing is removed, and no pod is ended because a disk is full.

pub(crate) mod disk_space;
mod needs;
mod sweep;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use podling_runtime::chain;
use tokio::sync::{Notify, RwLock, RwLockReadGuard};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::disk_space::DiskSpace;
use self::needs::{Choice, Memory};
use crate::pod::context::Context;
use crate::pod::images::blocking;
use crate::store::{Origin, Problem};

/// How often it looks although nothing happens: a file system that fills tells nobody. The kubelet's period.
const PERIOD: Duration = Duration::from_secs(300);
/// Events that come together are one look.
const GATHER: Duration = Duration::from_millis(200);
/// The name of its problems in the store.
const PROBLEMS: &str = "images";

/// What workers tell the collector.
#[derive(Debug, Default)]
pub struct Garbage {
    news: Notify,
    full: AtomicBool,
    /// Held to look for an image, and exclusively to remove one.
    removal: RwLock<()>,
}

impl Garbage {
    /// A pull or a pod has ended: there may be something to remove, or less space.
    pub fn look(&self) {
        self.news.notify_one();
    }

    /// There was no space left for a pull: all goes that is not needed.
    pub fn disk_is_full(&self) {
        self.full.store(true, Ordering::Release);
        self.news.notify_one();
    }

    /// No image is removed as long as this is held.
    pub async fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.removal.read().await
    }
}

/// The running collector; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Collection(Option<JoinHandle<()>>);

impl Collection {
    /// Begins, unless the configuration has turned it off.
    pub(super) fn begin(context: &Arc<Context>) -> Self {
        let is_on = context.config.images.gc.is_on();
        let collector = || Collector {
            context: Arc::clone(context),
            memory: Memory::new(Instant::now()),
            swept: false,
            pressed_since: None,
        };
        Self(is_on.then(|| tokio::spawn(collector().run())))
    }
}

impl Drop for Collection {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// Why something goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// The file system is to be no fuller than this.
    Percent(u8),
    /// All that can.
    All,
    /// What is overdue.
    Overdue,
}

struct Collector {
    context: Arc<Context>,
    memory: Memory,
    /// Nothing has happened since all went that can.
    swept: bool,
    /// Since when there is too little space and nothing to remove.
    pressed_since: Option<Timestamp>,
}

impl Collector {
    async fn run(mut self) {
        loop {
            let full = self.context.garbage.full.swap(false, Ordering::AcqRel);
            let next = match self.look(full).await {
                Ok(next) => next,
                Err(message) => {
                    tracing::warn!(message, "unneeded images are not removed");
                    None
                }
            };
            let period = Instant::now() + PERIOD;
            let alarm = next.map_or(period, |next| next.min(period));
            // Both are cancel-safe.
            tokio::select! {
                () = self.context.garbage.news.notified() => {
                    self.swept = false;
                    tokio::time::sleep(GATHER).await;
                }
                () = tokio::time::sleep_until(alarm) => {}
            }
        }
    }

    /// Sees what is there, and removes what has to go. Gives the time of the next look, if it is known.
    async fn look(&mut self, full: bool) -> Result<Option<Instant>, String> {
        let config = self.context.config.images.gc.clone();
        let before = self.space().await?;
        let choice = self.choose().await?;
        let goal = if full {
            Goal::All
        } else if config.high_threshold_percent < 100
            && before.used_percent() >= config.high_threshold_percent
        {
            Goal::Percent(config.low_threshold_percent)
        } else {
            Goal::Overdue
        };
        if goal == Goal::Overdue && choice.overdue == 0 {
            self.tell(None);
            return Ok(choice.next);
        }
        if choice.free.is_empty() && self.swept {
            return Ok(choice.next);
        }
        let after = self.remove(goal, &choice, &before).await?;
        // What goes now is no longer to be counted.
        let choice = self.choose().await?;
        self.swept = choice.free.is_empty();
        let is_pressed = after.used_percent() >= config.high_threshold_percent;
        self.tell((goal != Goal::Overdue && is_pressed).then_some((&after, &choice)));
        Ok(choice.next)
    }

    async fn space(&self) -> Result<DiskSpace, String> {
        let dir = self.context.images.dir().to_owned();
        blocking(move || {
            DiskSpace::of(&dir).map_err(|error| format!("look at {}: {error}", dir.display()))
        })
        .await
    }

    async fn choose(&mut self) -> Result<Choice, String> {
        let context = Arc::clone(&self.context);
        let (images, needs) = blocking(move || {
            let images = sweep::images(&context)?;
            Ok((images, sweep::needs(&context)?))
        })
        .await?;
        let now = Instant::now();
        self.memory.observe(&images, &needs, now);
        let config = &self.context.config.images.gc;
        Ok(self.memory.choose(&images, &needs, config, now))
    }

    /// First what has no name, then image by image.
    async fn remove(
        &self,
        goal: Goal,
        choice: &Choice,
        before: &DiskSpace,
    ) -> Result<DiskSpace, String> {
        let is_reached = |space: &DiskSpace| match goal {
            Goal::Percent(low) => space.used_percent() <= low,
            Goal::All | Goal::Overdue => false,
        };
        let mut space = before.clone();
        if goal != Goal::Overdue {
            sweep::unnamed(&self.context).await?;
            space = self.space().await?;
        }
        let count = match goal {
            Goal::Overdue => choice.overdue,
            Goal::Percent(_) | Goal::All => choice.free.len(),
        };
        for digest in choice.free.iter().take(count) {
            if is_reached(&space) {
                break;
            }
            if let Some(names) = sweep::image(&self.context, digest).await? {
                let free_before = space.available_bytes;
                sweep::unnamed(&self.context).await?;
                space = self.space().await?;
                let freed_bytes = space.available_bytes.saturating_sub(free_before);
                let why = match goal {
                    Goal::Overdue => "nobody has used it for the maximum age".to_owned(),
                    Goal::Percent(_) | Goal::All => before.to_string(),
                };
                tracing::info!(image = names, %digest, freed_bytes, why, "removed an unneeded image");
            }
        }
        Ok(space)
    }

    /// Says in `podling status` and once in the log that there is too little space.
    fn tell(&mut self, pressed: Option<(&DiskSpace, &Choice)>) {
        let Some((space, choice)) = pressed else {
            if self.pressed_since.take().is_some() {
                tracing::info!("there is space for images again");
                self.context.store.set_problems(PROBLEMS, Vec::new());
            }
            return;
        };
        let is_new = self.pressed_since.is_none();
        let since = *self.pressed_since.get_or_insert_with(Timestamp::now);
        let mut problem = problem(self.context.images.dir(), space, choice);
        problem.since = since;
        if is_new {
            tracing::warn!(%problem, "too little space for images");
        }
        self.context.store.set_problems(PROBLEMS, vec![problem]);
    }
}

fn problem(dir: &std::path::Path, space: &DiskSpace, choice: &Choice) -> Problem {
    let kept = choice.kept;
    let message = format!(
        "{space}, and no more images can be removed: containers use {}, manifests name {}, {} are pinned, {} are too young",
        kept.used, kept.wanted, kept.pinned, kept.young
    );
    Problem::new(Origin::file(dir), message)
        .remedy("remove pods or other files from it, or give it more space")
}

/// What to tell of an error after which the file system of the images is full, beside the error itself. Reads the
/// store.
pub(crate) fn full_remedy(context: &Context) -> String {
    let space = match DiskSpace::of(context.images.dir()) {
        Ok(space) => space.to_string(),
        Err(error) => return chain(&error),
    };
    match context.config.images.gc.is_on() {
        false => remedy_of(&space, None),
        true => match sweep::unneeded(context) {
            Ok(unneeded) => remedy_of(&space, Some(unneeded)),
            Err(message) => format!("{space}, and no image is removed: {message}"),
        },
    }
}

/// `unneeded`: how many images the collector may take; none, where it is turned off.
fn remedy_of(space: &str, unneeded: Option<usize>) -> String {
    match unneeded {
        None => format!("{space}: `podling images rm` frees some, or give it more space"),
        Some(0) => format!(
            "{space}, and no image is removed by itself, since all that are here are used, named by manifests or pinned: \
             remove pods or other files, or give it more space"
        ),
        Some(unneeded) => format!(
            "{space}: of the images here nothing needs {unneeded}, and they are removed as soon as they are old enough; \
             `podling images rm` removes others, or give it more space"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_that_images_go_where_none_can() {
        let space = "the file system at / is 99 % full";
        let none = remedy_of(space, Some(0));
        assert!(none.contains("no image is removed by itself"), "{none}");
        assert!(!none.contains("images rm"), "{none}");
        let some = remedy_of(space, Some(2));
        assert!(
            some.contains("nothing needs 2, and they are removed"),
            "{some}"
        );
        let off = remedy_of(space, None);
        assert!(
            !off.contains("removed") && off.contains("images rm"),
            "{off}"
        );
    }
}
