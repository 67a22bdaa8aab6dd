//! Capacity is reserved for one allocation at a time, by the reservations in the cache and the assumed ones: those that
//! this process made and has not observed yet, as in kube-scheduler.
//!
//! All capacity is computed a few times a second, and reservations made in between are subtracted: in a burst, counting
//! every pod for every allocation would take all available time. A snapshot that is not fresh never declines an
//! allocation: capacity is computed again first. Listing the reservations for every allocation would cost the API
//! server the square of their number. A second replica that believes it leads is at most as far behind as its watch, a
//! moment; the scheduler never assigns a GPU twice.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kube::{Api, ResourceExt as _};
use leasehold_crds::{GpuReservation, provider::reservation::GpuReservationSpec};
use leasehold_planner::request::Shape;
use leasehold_runtime::Error;

use crate::provider::{Provider, offer::Supplies};

/// A snapshot is valid for this long, or for ten times as long as it took to compute.
const VALID_FOR: Duration = Duration::from_millis(200);

/// A reservation that the watch has not delivered for this long may have been deleted while the watch was interrupted:
/// it is read from the API server.
const OBSERVED_WITHIN: Duration = Duration::from_secs(60);

/// Reservations that were made here and that the watch has not delivered yet, by name.
#[derive(Default)]
pub(crate) struct AssumedReservations(Mutex<BTreeMap<String, (Instant, Arc<GpuReservation>)>>);

impl AssumedReservations {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, (Instant, Arc<GpuReservation>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An assumed reservation.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<GpuReservation>> {
        self.all().get(name).map(|(_, reservation)| reservation.clone())
    }

    /// All assumed reservations.
    fn known(&self) -> BTreeMap<String, Arc<GpuReservation>> {
        let all = self.all();
        let known = all
            .iter()
            .map(|(name, (_, reservation))| (name.clone(), reservation.clone()));
        known.collect()
    }

    /// Assumes that a reservation exists.
    pub(crate) fn assume(&self, reservation: GpuReservation) {
        let name = reservation.name_any();
        self.all().insert(name, (Instant::now(), Arc::new(reservation)));
    }

    /// The watch delivered the reservation, or its deletion: from now on the cache is right.
    pub(crate) fn observed(&self, name: &str) {
        self.all().remove(name);
    }

    fn late(&self) -> Vec<String> {
        let all = self.all();
        let late = all.iter().filter(|(_, (at, _))| at.elapsed() > OBSERVED_WITHIN);
        late.map(|(name, _)| name.clone()).collect()
    }
}

/// Capacity of all pools, for the holder of the lock.
#[derive(Default)]
pub(crate) struct CapacitySnapshot(Option<Counted>);

struct Counted {
    supplies: Supplies,
    until: Instant,
}

impl CapacitySnapshot {
    /// What every pool can sell, and whether that was computed just now.
    pub(crate) async fn get(&mut self, provider: &Provider) -> Result<(&Supplies, bool), Error> {
        let begun = Instant::now();
        let still = self.0.take().filter(|counted| counted.until > begun);
        let new = still.is_none();
        let counted = match still {
            Some(counted) => counted,
            None => Counted {
                supplies: provider.supplies(&provider.reserved().await?, provider.now()),
                until: begun + VALID_FOR.max(10 * begun.elapsed()),
            },
        };
        Ok((&self.0.insert(counted).supplies, new))
    }

    /// Drops the snapshot: the next use computes it again.
    pub(crate) fn invalidate(&mut self) {
        self.0 = None;
    }

    /// Subtracts a new reservation.
    pub(crate) fn subtract(&mut self, spec: &GpuReservationSpec) {
        let counted = self.0.as_mut();
        let pool = counted.and_then(|c| c.supplies.get_mut(&spec.allocation.pool));
        match (pool, Shape::from_wire(&spec.allocation.per_node)) {
            (Some(pool), Ok(shape)) => pool.take(&spec.nodes, &shape),
            _ => self.invalidate(),
        }
    }
}

impl Provider {
    /// Every reservation, assumed ones included. The caller holds the capacity lock.
    pub(crate) async fn reserved(&self) -> Result<Vec<Arc<GpuReservation>>, Error> {
        let api = Api::<GpuReservation>::all(self.client.clone());
        for name in self.assumed.late() {
            let still = api
                .get_opt(&name)
                .await
                .map_err(Error::kube("read a reservation"))?;
            match still {
                Some(still) => self.assumed.assume(still),
                None => self.assumed.observed(&name),
            }
        }
        // The assumed ones are read first: one that is observed in between is in both, never in neither.
        let assumed = self.assumed.known();
        Ok(union(assumed, self.caches.reservations.state()))
    }
}

/// Each reservation once, as cached where it is. Both are read exactly once: a reservation observed after the cache was
/// read would otherwise be missed.
fn union(
    mut assumed: BTreeMap<String, Arc<GpuReservation>>,
    mut cached: Vec<Arc<GpuReservation>>,
) -> Vec<Arc<GpuReservation>> {
    for reservation in &cached {
        assumed.remove(&reservation.name_any());
    }
    cached.extend(assumed.into_values());
    cached
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assumed_reservation_counts_once_though_it_is_observed_meanwhile() {
        let assumed = AssumedReservations::default();
        let reservation = |name: &str| GpuReservation::new(name, GpuReservationSpec::default());
        assumed.assume(reservation("a"));
        assumed.assume(reservation("b"));
        let known = assumed.known();
        // Observed after the cache was read.
        let cached_before = vec![Arc::new(reservation("b")), Arc::new(reservation("c"))];
        assumed.observed("a");
        let mut names: Vec<_> = union(known, cached_before).iter().map(|r| r.name_any()).collect();
        names.sort();
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn a_reservation_is_assumed_until_it_is_observed() {
        let assumed = AssumedReservations::default();
        assumed.assume(GpuReservation::new("a", GpuReservationSpec::default()));
        assert!(assumed.get("a").is_some() && assumed.get("b").is_none());
        assert!(assumed.late().is_empty());
        assumed.observed("a");
        assert!(
            assumed.get("a").is_none(),
            "it may be deleted by now: the cache is read"
        );
    }
}
