//! GPUX's example: one lease over three providers, extended by three hours and refunded, with all transactions
//! counted and all balances checked to the unit.

use std::time::Duration;

use leasehold_crds::lease::Phase;
use leasehold_e2e::{
    Console, Role, Stack, StackSpec, address, on_stack, payee,
    story::{self, Stage},
};

#[tokio::test(flavor = "multi_thread")]
async fn three_providers_serve_one_lease_in_six_transactions() -> anyhow::Result<()> {
    on_stack(StackSpec::three_providers("e2e-gpux"), tell).await
}

async fn tell(stack: &Stack) -> anyhow::Result<()> {
    let console = Console::log();
    let stage = Stage::set(stack, "team-b", &console)?;
    let gpux = story::gpux(&stage).await?;
    gpux.check()?;
    let outcome = &gpux.outcome;
    outcome.check_money(&stage.participants)?;
    outcome.check_returned()?;

    // Three legs with three payees, each paid for the seconds of block times.
    let mut payees: Vec<_> = outcome.terms.legs.iter().map(|leg| leg.payee).collect();
    payees.sort_by_key(|payee| payee.0);
    assert_eq!(payees, [payee(0), payee(1), payee(2)]);
    for served in &outcome.served {
        assert!(served.seconds >= 5 && served.earned.0 > 0, "{served:?}");
        assert_eq!(stage.tenant.balance(served.payee).await?, served.earned);
    }
    let spent: u128 = outcome.served.iter().map(|served| served.earned.0).sum();
    assert_eq!(
        stage.tenant.own_balance().await?.0,
        outcome.before[0].0 - spent,
        "the rest is refunded"
    );
    assert_eq!(
        stage.tenant.balance(stack.money.escrow).await?.0,
        0,
        "the escrow holds nothing"
    );

    // The called functions, by sender.
    let calls = |from| -> Vec<&str> {
        let sent = outcome.transactions.iter().filter(|t| t.from == from);
        sent.map(|t| t.call.as_str()).collect()
    };
    let tenant = calls(address(Role::Tenant)?);
    assert!(tenant.len() <= 3 && tenant[0].starts_with("open"), "{tenant:?}");
    assert_eq!(
        calls(address(Role::Closer)?),
        ["close"],
        "one call pays all providers"
    );
    for index in 0..3 {
        assert_eq!(calls(address(Role::Controller(index))?), ["start"]);
    }
    let phases: Vec<Phase> = outcome.phases.iter().map(|(phase, _)| *phase).collect();
    assert!(phases.contains(&Phase::Active), "{phases:?}");
    assert!(gpux.to_refund < Duration::from_secs(30), "{:?}", gpux.to_refund);

    for returned in &outcome.returned {
        eprintln!(
            "{}: offered again {:.2} s after its pod's end",
            returned.provider,
            returned.after_pod().as_secs_f64()
        );
    }
    eprintln!(
        "{} transactions, {} of them the tenant's with {} gas; all served after {:.1} s, gone {:.1} s after the deletion",
        outcome.transactions.len(),
        gpux.tenant_transactions,
        gpux.tenant_gas,
        gpux.to_ready.as_secs_f64(),
        gpux.to_refund.as_secs_f64()
    );
    Ok(())
}
