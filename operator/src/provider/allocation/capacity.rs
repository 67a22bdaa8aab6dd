//! Room is given away one question at a time, by what is reserved: what the cache shows, and what was made here since.
//!
//! All of it is counted a few times a second, and what is given away in between taken off: in a burst, to count every pod
//! for every question would take all the time there is. What was counted a moment ago refuses nobody: it is counted anew.
//! Listing the reservations anew for every question would cost the API server the square of their number. A second
//! replica that believes it leads is as far behind as its watch, a moment; the scheduler gives no GPU twice.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kube::{Api, ResourceExt as _};
use leasehold_crds::{GpuReservation, provider::reservation::GpuReservationSpec};
use leasehold_planner::request::Shape;

use crate::{
    error::Error,
    provider::{Provider, offer::Supplies},
};

/// What was counted is good for so long, or for ten times as long as it took to count.
const GOOD_FOR: Duration = Duration::from_millis(200);

/// What the watch tells nothing of for so long may have come and gone while it was interrupted: the API server is asked.
const SHOWN_WITHIN: Duration = Duration::from_secs(60);

/// Reservations that were made here and that the watch has not told of yet, by name.
#[derive(Default)]
pub(crate) struct Made(Mutex<BTreeMap<String, (Instant, Arc<GpuReservation>)>>);

impl Made {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, (Instant, Arc<GpuReservation>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of them.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<GpuReservation>> {
        self.all().get(name).map(|(_, made)| made.clone())
    }

    /// All of them.
    fn known(&self) -> BTreeMap<String, Arc<GpuReservation>> {
        let all = self.all();
        let known = all.iter().map(|(name, (_, made))| (name.clone(), made.clone()));
        known.collect()
    }

    /// Notes one.
    pub(crate) fn note(&self, made: GpuReservation) {
        let note = (Instant::now(), Arc::new(made));
        self.all().insert(note.1.name_any(), note);
    }

    /// The watch has told of it, be it that it is there or that it is gone: from now on the cache is right.
    pub(crate) fn told(&self, name: &str) {
        self.all().remove(name);
    }

    fn late(&self) -> Vec<String> {
        let all = self.all();
        let late = all.iter().filter(|(_, (at, _))| at.elapsed() > SHOWN_WITHIN);
        late.map(|(name, _)| name.clone()).collect()
    }
}

/// The room there is, for who has the turn.
#[derive(Default)]
pub(crate) struct Room(Option<Counted>);

struct Counted {
    supplies: Supplies,
    until: Instant,
}

impl Room {
    /// What every pool can sell, and whether that was counted just now.
    pub(crate) async fn count(&mut self, provider: &Provider) -> Result<(&Supplies, bool), Error> {
        let begun = Instant::now();
        let still = self.0.take().filter(|counted| counted.until > begun);
        let new = still.is_none();
        let counted = match still {
            Some(counted) => counted,
            None => Counted {
                supplies: provider.supplies(&provider.reserved().await?, provider.now()),
                until: begun + GOOD_FOR.max(10 * begun.elapsed()),
            },
        };
        Ok((&self.0.insert(counted).supplies, new))
    }

    /// The next to have the turn counts anew.
    pub(crate) fn forget(&mut self) {
        self.0 = None;
    }

    /// Takes off what is reserved now.
    pub(crate) fn take(&mut self, spec: &GpuReservationSpec) {
        let counted = self.0.as_mut();
        let pool = counted.and_then(|c| c.supplies.get_mut(&spec.allocation.pool));
        match (pool, Shape::from_wire(&spec.allocation.node)) {
            (Some(pool), Ok(shape)) => pool.take(&spec.nodes, &shape),
            _ => self.forget(),
        }
    }
}

impl Provider {
    /// Every reservation there is. Who asks has the turn.
    pub(crate) async fn reserved(&self) -> Result<Vec<Arc<GpuReservation>>, Error> {
        let api = Api::<GpuReservation>::all(self.client.clone());
        for name in self.made.late() {
            let still = api
                .get_opt(&name)
                .await
                .map_err(Error::kube("read a reservation"))?;
            match still {
                Some(still) => self.made.note(still),
                None => self.made.told(&name),
            }
        }
        // Made before shown: what passes from the one to the other in between is in both, never in neither.
        let made = self.made.known();
        Ok(together(made, self.caches.reservations.state()))
    }
}

/// Each of them once, as it is shown where it is. Both are looked at once only: what is shown a moment after the cache
/// was read would be missed, were it then left to the cache.
fn together(
    mut made: BTreeMap<String, Arc<GpuReservation>>,
    mut shown: Vec<Arc<GpuReservation>>,
) -> Vec<Arc<GpuReservation>> {
    for reservation in &shown {
        made.remove(&reservation.name_any());
    }
    shown.extend(made.into_values());
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_counts_once_though_the_watch_tells_of_it_meanwhile() {
        let made = Made::default();
        let reservation = |name: &str| GpuReservation::new(name, GpuReservationSpec::default());
        made.note(reservation("a"));
        made.note(reservation("b"));
        let known = made.known();
        // Told after that: whoever counts has read what was shown before.
        let shown_before = vec![Arc::new(reservation("b")), Arc::new(reservation("c"))];
        made.told("a");
        let mut names: Vec<_> = together(known, shown_before)
            .iter()
            .map(|r| r.name_any())
            .collect();
        names.sort();
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn what_was_made_is_known_until_the_watch_tells_of_it() {
        let made = Made::default();
        made.note(GpuReservation::new("a", GpuReservationSpec::default()));
        assert!(made.get("a").is_some() && made.get("b").is_none());
        assert!(made.late().is_empty());
        made.told("a");
        assert!(
            made.get("a").is_none(),
            "it may be gone by now: the cache is asked"
        );
    }
}
