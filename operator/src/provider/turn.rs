//! Room is given away one question at a time, by what is reserved: what the cache shows, and what was made here since.
//!
//! Listing the reservations anew for every question would cost the API server the square of their number. A second
//! replica that believes it leads is as far behind as its watch, a moment; the scheduler gives no GPU twice.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{Api, ResourceExt as _};
use leasehold_crds::GpuReservation;

use super::Provider;
use crate::{cache, error::Error};

/// A cache that shows nothing of a reservation for so long is not believed: the API server is asked.
const SHOWN_WITHIN: Duration = Duration::from_secs(60);

/// Reservations that were made and that the cache may not show yet, by name. Who holds it has the turn.
#[derive(Default)]
pub(super) struct Turn(BTreeMap<String, (Instant, Arc<GpuReservation>)>);

impl Turn {
    /// A reservation that was made here.
    pub(super) fn made(&self, name: &str) -> Option<Arc<GpuReservation>> {
        self.0.get(name).map(|(_, made)| made.clone())
    }

    /// Notes one.
    pub(super) fn note(&mut self, made: GpuReservation) {
        self.0.insert(made.name_any(), (Instant::now(), Arc::new(made)));
    }
}

impl Provider {
    /// Every reservation there is.
    pub(super) async fn reserved(&self, turn: &mut Turn) -> Result<Vec<Arc<GpuReservation>>, Error> {
        let shown = |name: &str| cache::get(&self.caches.reservations, name, None).is_some();
        turn.0.retain(|name, _| !shown(name));
        let late = |(at, _): &(Instant, _)| at.elapsed() > SHOWN_WITHIN;
        let names: Vec<String> = turn
            .0
            .iter()
            .filter(|(_, made)| late(made))
            .map(|(n, _)| n.clone())
            .collect();
        let api = Api::<GpuReservation>::all(self.client.clone());
        for name in names {
            match api
                .get_opt(&name)
                .await
                .map_err(Error::kube("read a reservation"))?
            {
                Some(still) => turn.note(still),
                None => drop(turn.0.remove(&name)),
            }
        }
        let mut all = self.caches.reservations.state();
        all.extend(turn.0.values().map(|(_, made)| made.clone()));
        Ok(all)
    }
}
