//! A leg that serves, on a chain that carries out every call.

use leasehold_crds::{
    GpuReservation,
    market::allocation::{AllocationPhase, GpuAllocationSpec},
    payment::{escrow::EscrowTerms, money::TokenAmount},
};

use super::super::*;
use crate::{
    escrow::{AccountRead, Address},
    provider::{
        health::{Fault, FaultKind, Health},
        offer::resumption::Room,
        reservation::{
            Reading, Running, Workload, decide,
            pods::tests::pods_of,
            tests::{account, known},
            wants_second,
        },
    },
};

pub(super) const RATE: Rate = Rate(500 * RATE_SCALE);

/// The one leg of an account, which serves from second 0 of the chain's clock.
pub(super) struct Scenario {
    pub(super) reservation: GpuReservation,
    pub(super) account: Account,
    pub(super) running: Running,
    pub(super) withdraw: Option<Withdrawals>,
    pub(super) fault: Observed<Option<Fault>>,
    pub(super) room: Room,
    pub(super) calls: Vec<LegCall>,
    /// Whether the last plan ran its pods.
    pub(super) runs_pods: bool,
    /// What it had served when the fault began that is not over for the leg.
    pub(super) well: Option<u64>,
    pub(super) started: u64,
    /// Whether the first and the second read of the account succeed.
    pub(super) reads: (bool, bool),
}

fn terms() -> Terms {
    crate::provider::reservation::tests::terms(900, RATE)
}

pub(super) fn serving() -> Scenario {
    let escrow: EscrowTerms = terms().to_wire(1, Address([9; 20]));
    let spec = GpuReservationSpec {
        allocation: GpuAllocationSpec {
            nodes: 1,
            not_after: 1 << 30,
            deposit: "0".into(),
            escrow,
            ..GpuAllocationSpec::default()
        },
        ..GpuReservationSpec::default()
    };
    let name = crate::provider::reservation::tests::named(&spec);
    let mut reservation = GpuReservation::new(&name, spec);
    reservation.status = Some(GpuReservationStatus {
        phase: AllocationPhase::Active,
        ..GpuReservationStatus::default()
    });
    Scenario {
        reservation,
        account: Account {
            deposited: TokenAmount(500 * 100_000),
            balance_scaled: 500 * 100_000 * RATE_SCALE,
            block_time: 0,
            paid_until: 100_000,
            ..account()
        },
        running: Running {
            reading: Reading::Cached,
            namespace: true,
            pods_alive: 1,
            pods_ready: 1,
            pods_run: 1,
            ..Running::default()
        },
        withdraw: None,
        fault: Observed::Known(None),
        room: Room::Free,
        calls: Vec::new(),
        runs_pods: false,
        well: None,
        started: 0,
        reads: (true, true),
    }
}

impl Scenario {
    pub(super) fn at_fault(&mut self, ago: u64) {
        if matches!(self.fault, Observed::Known(Some(_))) {
            return;
        }
        self.fault_since(self.account.block_time.saturating_sub(ago).max(self.started));
    }

    pub(super) fn fault_since(&mut self, since: u64) {
        self.fault = Observed::Known(Some(Fault {
            kind: FaultKind::Gpu,
            message: "broken".into(),
            since,
        }));
    }

    pub(super) fn status(&self) -> &GpuReservationStatus {
        self.reservation.status.as_ref().unwrap()
    }

    /// Status, reason and message of a condition.
    pub(super) fn condition(&self, type_: &str) -> (String, String, String) {
        let found = leasehold_crds::shared::conditions::find(&self.status().conditions, type_).unwrap();
        (found.status.clone(), found.reason.clone(), found.message.clone())
    }

    pub(super) fn served(&self) -> u64 {
        self.account.legs[0].served_seconds
    }

    /// Time passes on the chain.
    pub(super) fn wait(&mut self, seconds: u64) {
        self.account.block_time += seconds;
        if self.account.running == 1 {
            self.account.legs[0].served_seconds += seconds;
        }
        let leg = &mut self.account.legs[0];
        let earned = RATE.earned_floor(leg.served_seconds).unwrap();
        leg.owed = TokenAmount(earned.0 - leg.withdrawn.0);
    }

    /// Reconciles once with these reads, and stores the status. The call is carried out if an intent for it was stored
    /// before.
    pub(super) fn reconcile_with(&mut self, read: &Account, second: &Account) {
        // A fault that a reconcile has seen is credited, however soon it is over.
        if let (Observed::Known(Some(fault)), None, 1) = (&self.fault, self.well, self.account.running) {
            self.well = Some(self.served() - (self.account.block_time - fault.since));
        }
        let answer = |account: &Account, succeeds| match succeeds {
            true => known(AccountRead::Present(account.clone()), account.block_time),
            false => Observed::Unknown("not read".into()),
        };
        let first = answer(read, self.reads.0);
        let wanted = wants_second(&self.reservation, &first);
        let second = answer(second, self.reads.1 && wanted);
        let world = World {
            reservation: &self.reservation,
            account: first,
            second,
            settled: None,
            final_reads: Vec::new(),
            running: Observed::Known(Running {
                pods: match self.running.pods.as_slice() {
                    [] => pods_of(&self.running),
                    pods => pods.to_vec(),
                },
                ..self.running.clone()
            }),
            allocation_exists: Observed::Known(true),
            grace_seconds: 0,
            health: Health {
                fault: self.fault.clone(),
                due: None,
            },
            room: self.room.clone(),
            withdraw: self.withdraw,
            denylist: std::sync::Arc::default(),
            connector: &crate::provider::workload::ConnectorPods::default(),
            results_image: "operator",
        };
        let time = i64::try_from(self.account.block_time).unwrap();
        let plan = decide(&world, Timestamp::from_second(time).unwrap());
        self.runs_pods = matches!(plan.workload, Workload::Run { .. });
        let stored = self.status().intent == plan.status.intent;
        self.reservation.status = Some(plan.status);
        if let Some(call) = plan.call.filter(|_| stored) {
            self.mine(&call);
        }
    }

    pub(super) fn mine(&mut self, call: &LegCall) {
        match call {
            LegCall::Start => {
                if let Some(well) = self.well.take() {
                    assert_eq!(self.served(), well, "exactly the fault's seconds went back");
                }
                if self.account.running == 0 {
                    self.started = self.account.block_time;
                }
                self.account.running = 1;
            }
            LegCall::Pause => self.account.running = 0,
            LegCall::CreditTo(total) => {
                let most = self.served() - kept(&self.account.legs[0], RATE);
                let leg = &mut self.account.legs[0];
                let seconds = total.saturating_sub(leg.credited_seconds);
                assert!(seconds <= most, "the contract refuses it");
                leg.served_seconds -= seconds;
                leg.credited_seconds += seconds;
            }
            LegCall::Withdraw => {
                let leg = &mut self.account.legs[0];
                leg.withdrawn.0 += leg.owed.0;
                leg.owed.0 = 0;
            }
            LegCall::End => panic!("{call:?} is not expected"),
        }
        self.calls.push(call.clone());
    }

    pub(super) fn reconcile_times(&mut self, count: usize) {
        for _ in 0..count {
            let read = self.account.clone();
            self.reconcile_with(&read, &read);
            self.wait(1);
        }
    }
}
