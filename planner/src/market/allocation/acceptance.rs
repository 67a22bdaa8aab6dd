//! Whether a provider has accepted an allocation: the controller of its leg has signed what the market asked for.

use leasehold_crds::{GpuAllocation, payment::money::Rate};

use crate::{
    escrow::{Address, Terms},
    ports::AcceptanceMessage,
};

/// Whether the acceptance in the status is one of the whole allocation. `signer_of` is who signed a message with a
/// signature, if anybody did. A provider that promises less time than it was asked for, or a shorter reservation, has not
/// accepted: the deposit would pay for what it may refuse.
#[must_use]
pub fn is_accepted(
    allocation: &GpuAllocation,
    signer_of: impl FnOnce(&AcceptanceMessage, &[u8; 65]) -> Option<Address>,
) -> bool {
    let check = || {
        let spec = &allocation.spec;
        let acceptance = allocation.status.as_ref()?.acceptance.as_ref()?;
        let terms = Terms::from_wire(&spec.escrow).ok()?;
        let leg = terms.legs.get(usize::try_from(spec.leg).ok()?)?;
        let digits = acceptance.signature.strip_prefix("0x")?;
        let signature: [u8; 65] = data_encoding::HEXLOWER_PERMISSIVE
            .decode(digits.as_bytes())
            .ok()?
            .try_into()
            .ok()?;
        let Rate(rate) = leg.rate;
        let message = AcceptanceMessage {
            escrow_id: terms.id(),
            leg: u16::try_from(spec.leg).ok()?,
            rate,
            not_after: u64::try_from(acceptance.not_after).ok()?,
            deadline: u64::try_from(acceptance.deadline).ok()?,
        };
        let signer = signer_of(&message, &signature)?;
        Some(
            signer == leg.controller
                && acceptance.deadline >= spec.open_by
                && acceptance.not_after >= spec.not_after,
        )
    };
    check().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use leasehold_crds::market::allocation::{Acceptance, GpuAllocationSpec, GpuAllocationStatus};

    use super::*;
    use crate::escrow::{Hash, Leg};

    const CONTROLLER: Address = Address([2; 20]);

    fn allocation(change: impl FnOnce(&mut Acceptance)) -> GpuAllocation {
        let terms = Terms {
            payer: Address([3; 20]),
            market: Address([4; 20]),
            token: Address([5; 20]),
            closer: Address([6; 20]),
            salt: Hash([7; 32]),
            start_by: 1_900,
            notice_seconds: 0,
            pause_for: 0,
            legs: vec![Leg {
                payee: Address([1; 20]),
                controller: CONTROLLER,
                rate: Rate(1_000_000),
            }],
        };
        let spec = GpuAllocationSpec {
            escrow: terms.to_wire(1, Address([8; 20])),
            open_by: 1_000,
            not_after: 5_000,
            ..GpuAllocationSpec::default()
        };
        let mut acceptance = Acceptance {
            not_after: 5_000,
            deadline: 1_000,
            signature: format!("0x{}", "5".repeat(130)),
        };
        change(&mut acceptance);
        let mut allocation = GpuAllocation::new("a", spec);
        allocation.status = Some(GpuAllocationStatus {
            acceptance: Some(acceptance),
            ..GpuAllocationStatus::default()
        });
        allocation
    }

    #[test]
    fn a_provider_accepts_the_whole_time_or_not_at_all() {
        let signed_by = |who, change: fn(&mut Acceptance)| is_accepted(&allocation(change), |_, _| Some(who));
        assert!(signed_by(CONTROLLER, |_| {}));
        assert!(signed_by(CONTROLLER, |a| a.not_after += 1));
        assert!(
            !signed_by(CONTROLLER, |a| a.not_after -= 1),
            "it promises less time"
        );
        assert!(
            !signed_by(CONTROLLER, |a| a.deadline -= 1),
            "its reservation ends too early"
        );
        assert!(!signed_by(Address([9; 20]), |_| {}), "another signed");
        assert!(!signed_by(CONTROLLER, |a| a.signature = "0x".into()));
    }
}
