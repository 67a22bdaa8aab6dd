//! Room is given away one question at a time, by what is reserved: what the cache shows, and what was made here since.
//!
//! Listing the reservations anew for every question would cost the API server the square of their number. A second
//! replica that believes it leads is as far behind as its watch, a moment; the scheduler gives no GPU twice.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kube::{Api, ResourceExt as _};
use leasehold_crds::GpuReservation;

use super::Provider;
use crate::error::Error;

/// What the watch tells nothing of for so long may have come and gone while it was interrupted: the API server is asked.
const SHOWN_WITHIN: Duration = Duration::from_secs(60);

/// Reservations that were made here and that the watch has not told of yet, by name.
#[derive(Default)]
pub(super) struct Made(Mutex<BTreeMap<String, (Instant, Arc<GpuReservation>)>>);

impl Made {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, (Instant, Arc<GpuReservation>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of them.
    pub(super) fn get(&self, name: &str) -> Option<Arc<GpuReservation>> {
        self.all().get(name).map(|(_, made)| made.clone())
    }

    /// Notes one.
    pub(super) fn note(&self, made: GpuReservation) {
        let note = (Instant::now(), Arc::new(made));
        self.all().insert(note.1.name_any(), note);
    }

    /// The watch has told of it, be it that it is there or that it is gone: from now on the cache is right.
    pub(super) fn told(&self, name: &str) {
        self.all().remove(name);
    }

    fn late(&self) -> Vec<String> {
        let all = self.all();
        let late = all.iter().filter(|(_, (at, _))| at.elapsed() > SHOWN_WITHIN);
        late.map(|(name, _)| name.clone()).collect()
    }
}

impl Provider {
    /// Every reservation there is. Who asks has the turn.
    pub(super) async fn reserved(&self) -> Result<Vec<Arc<GpuReservation>>, Error> {
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
        // Made before shown: what passes from the one to the other in between is counted by both, never by neither.
        let made: Vec<_> = self.made.all().values().map(|(_, made)| made.clone()).collect();
        let mut all = self.caches.reservations.state();
        let shown = |made: &Arc<GpuReservation>| all.iter().any(|r| r.metadata.name == made.metadata.name);
        let rest: Vec<_> = made.into_iter().filter(|made| !shown(made)).collect();
        all.extend(rest);
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use leasehold_crds::reservation::GpuReservationSpec;

    use super::*;

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
