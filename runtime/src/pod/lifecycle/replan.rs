//! A new plan for a pod that runs.

use super::container::{Container, Life};
use super::run::{Stop, StopCause};
use super::{Lifecycle, PlanError, PodRules, ProbeKind, check, rules::Rules};
use crate::pod::clock::Now;
use crate::pod::plan::{ContainerKind, Plan};

impl Lifecycle {
    /// Takes a new plan, or refuses it and changes nothing.
    ///
    /// A container with another `spec_hash` is restarted gracefully, and not counted as a crash; one that is gone is
    /// stopped; a new one starts; probes, hooks and policies count at once.
    pub fn replace_plan(&mut self, plan: &Plan, now: Now) -> Result<(), PlanError> {
        self.check_change(plan)?;
        let grace_ms = self.rules.grace_ms;
        let mut old = std::mem::take(&mut self.containers);
        for planned in &plan.containers {
            let container = match old.iter().position(|c| c.name == planned.name) {
                None => Container::new(plan, planned),
                Some(position) => {
                    let mut container = old.remove(position);
                    container.take_rules(Rules::of(plan, planned), grace_ms, now);
                    container
                }
            };
            self.containers.push(container);
        }
        for mut gone in old {
            if gone.is_live() {
                gone.remove(grace_ms, now);
                self.containers.push(gone);
            }
        }
        self.generation = plan.generation;
        self.rules = PodRules::of(plan);
        Ok(())
    }

    fn check_change(&self, plan: &Plan) -> Result<(), PlanError> {
        check(plan)?;
        if plan.pod.uid != self.rules.uid {
            return Err(PlanError::OtherPod {
                uid: plan.pod.uid.clone(),
            });
        }
        if self.ended {
            return Err(PlanError::Ended);
        }
        let known = self.index();
        for planned in &plan.containers {
            let refuse = |problem| {
                Err(PlanError::Change {
                    container: planned.name.clone(),
                    problem,
                })
            };
            match known.get(planned.name.as_str()) {
                Some(&i) if self.containers[i].rules.kind != planned.kind => {
                    return refuse("it cannot become a container of another kind");
                }
                None if self.initialized && planned.kind == ContainerKind::Init => {
                    return refuse(
                        "an init container cannot be added to a pod that is initialised",
                    );
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }
}

impl Container {
    fn take_rules(&mut self, rules: Rules, grace_ms: u64, now: Now) {
        self.removed = false;
        let waits_for_source = self.rules.waits.is_some();
        self.rules = rules;
        let rules = &self.rules;
        self.probe_failures.retain(|failure| {
            let kind = ProbeKind::ALL
                .into_iter()
                .find(|k| k.name() == failure.probe);
            kind.is_some_and(|kind| rules.probe(kind).is_some())
        });
        match &self.life {
            Life::Running { .. } => self.stop_if_changed(grace_ms, now),
            Life::Waiting { .. } => {
                let changed = self
                    .last_spec_hash
                    .as_ref()
                    .is_some_and(|hash| *hash != self.rules.spec_hash);
                if changed || waits_for_source {
                    self.forgive();
                }
            }
            // One that starts is looked at once it runs.
            Life::Starting { .. } | Life::Ended { .. } => {}
        }
    }

    /// What runs is not what the plan says: it is stopped, to be started again.
    pub(super) fn stop_if_changed(&mut self, grace_ms: u64, now: Now) {
        if let Life::Running { run } = &mut self.life
            && run.spec_hash != self.rules.spec_hash
            && run.stop.is_none()
        {
            run.stop = Some(Stop::new(
                StopCause::Changed,
                "what it runs has changed".to_owned(),
                &self.rules,
                now.ms,
                now.ms.saturating_add(grace_ms),
            ));
        }
    }

    fn remove(&mut self, grace_ms: u64, now: Now) {
        self.removed = true;
        if let Life::Running { run } = &mut self.life
            && run.stop.is_none()
        {
            run.stop = Some(Stop::new(
                StopCause::Removed,
                "it is no longer in the plan".to_owned(),
                &self.rules,
                now.ms,
                now.ms.saturating_add(grace_ms),
            ));
        }
    }
}
