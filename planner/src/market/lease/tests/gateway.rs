//! Ports behind the gateway of the market: their URLs, and the token for them.

use super::*;
use crate::urls::{RESULTS, host_label};

/// A lease that serves a port `http` through the gateway, as its provider reports it.
fn tunnelled() -> World {
    let mut world = world(AccountRead::Present(account(600)), AllocationPhase::Active);
    world.gateway = Some(gateway());
    report(
        &mut world,
        vec![Endpoint {
            name: "http".into(),
            ..Endpoint::default()
        }],
    );
    world
}

fn report(world: &mut World, endpoints: Vec<Endpoint>) {
    let allocation = Arc::make_mut(&mut world.allocations[0].object);
    allocation.status.as_mut().unwrap().endpoints = endpoints;
}

fn report_results(world: &mut World, url: &str) {
    let allocation = Arc::make_mut(&mut world.allocations[0].object);
    allocation.status.as_mut().unwrap().results = vec![ResultsAt {
        url: url.into(),
        ..ResultsAt::default()
    }];
}

fn decided(world: &World) -> Plan {
    decide(world, &check(world), now())
}

fn url(port: &str) -> String {
    format!("https://{}.leases.example.org", host_label("team", "l", port, 0))
}

#[test]
fn a_port_without_a_host_is_published_at_the_url_of_its_lease() {
    let world = tunnelled();
    let expected = Endpoint {
        name: "http".into(),
        url: Some(url("http")),
        ..Endpoint::default()
    };
    assert_eq!(decided(&world).status.endpoints, [expected]);
}

/// A caller sends the token to the URL.
#[test]
fn a_provider_names_no_url_and_no_port_that_the_lease_does_not_declare() {
    let mut world = tunnelled();
    let hostile = |name: &str, host: Option<&str>, port| Endpoint {
        name: name.into(),
        host: host.map(str::to_owned),
        port,
        url: Some("https://evil.example".into()),
        node: 0,
    };
    report(
        &mut world,
        vec![
            hostile("http", None, None),
            hostile("kubelet", None, None),
            hostile("http", Some("192.0.2.1"), None),
            hostile("http", None, Some(10_250)),
            hostile("direct", Some("192.0.2.1"), Some(30_080)),
        ],
    );
    let published = decided(&world).status.endpoints;
    let urls: Vec<_> = published
        .iter()
        .map(|e| (e.name.as_str(), e.url.clone()))
        .collect();
    assert_eq!(urls, [("direct", None), ("http", Some(url("http")))]);
}

#[test]
fn without_a_gateway_nothing_is_published_that_cannot_be_reached() {
    let mut world = tunnelled();
    report_results(&mut world, "/uid");
    world.gateway = None;
    let status = decided(&world).status;
    assert_eq!((status.endpoints, status.results), (vec![], vec![]));
}

#[test]
fn results_are_published_below_the_name_of_their_lease() {
    let mut world = tunnelled();
    report_results(&mut world, "/3f2c");
    let published = |world: &World| {
        let results = decided(world).status.results;
        results.into_iter().map(|r| r.url).collect::<Vec<_>>()
    };
    assert_eq!(published(&world), [format!("{}/3f2c", url(RESULTS))]);
    report_results(&mut world, "//@evil.example");
    assert_eq!(published(&world), [format!("{}//@evil.example", url(RESULTS))]);
    report_results(&mut world, "http://192.0.2.1:30080/3f2c");
    assert_eq!(published(&world), ["http://192.0.2.1:30080/3f2c"]);
    // The status would be refused whole, and the lease could never end.
    report_results(&mut world, &format!("/{}", "a".repeat(511)));
    assert_eq!(published(&world), [""; 0]);
}

fn token(world: &mut World, token: AccessToken) {
    world.access_token = Observed::Known(token);
}

#[test]
fn only_a_secret_that_is_known_to_hold_no_token_takes_the_digest_away() {
    let mut world = tunnelled();
    let digest = "ab".repeat(32);
    let published = |world: &World| decided(world).status.access_token_sha256;
    let text = String::new;
    token(&mut world, AccessToken::Ready(digest.clone()));
    assert_eq!(published(&world), Some(digest.clone()));
    let status = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
    status.access_token_sha256 = Some(digest.clone());
    for kept in [
        Observed::Unknown("timeout".into()),
        Observed::Known(AccessToken::NotReadable(text())),
        Observed::Known(AccessToken::NotRead),
    ] {
        world.access_token = kept;
        assert_eq!(published(&world).as_ref(), Some(&digest));
    }
    for gone in [
        AccessToken::NotNamed,
        AccessToken::NotFound(text()),
        AccessToken::Malformed(text()),
    ] {
        token(&mut world, gone);
        assert_eq!(published(&world), None);
    }
    token(&mut world, AccessToken::Ready("cd".repeat(32)));
    assert_eq!(published(&world), Some("cd".repeat(32)), "it is rotated");
}

#[test]
fn a_condition_and_an_event_say_why_a_token_is_not_published() {
    let mut world = tunnelled();
    let said = |world: &mut World| {
        let plan = decided(world);
        let condition = find(&plan.status.conditions, LeaseCondition::TokenPublished);
        let condition = condition.map(|c| (c.status.clone(), c.reason.clone(), c.message.clone()));
        let events = events(world.lease.status.as_ref(), &plan.status);
        let warned = events
            .iter()
            .any(|event| event.reason == LeaseEvent::TokenNotPublished);
        Arc::make_mut(&mut world.lease).status = Some(plan.status);
        condition.map(|(status, reason, message)| (format!("{status} {reason}"), message, warned))
    };
    token(&mut world, AccessToken::NotNamed);
    let (word, message, warned) = said(&mut world).unwrap();
    assert_eq!((word.as_str(), warned), ("False NoTokenSecret", true));
    assert!(message.contains("port http"), "{message}");
    token(&mut world, AccessToken::Malformed("too short".into()));
    let expected = |word: &str, message: &str, warned| Some((word.to_owned(), message.to_owned(), warned));
    assert_eq!(
        said(&mut world),
        expected("False TokenMalformed", "too short", true)
    );
    assert_eq!(
        said(&mut world),
        expected("False TokenMalformed", "too short", false)
    );
    token(&mut world, AccessToken::Ready("ab".repeat(32)));
    assert_eq!(said(&mut world), expected("True Published", "", false));
    token(&mut world, AccessToken::NotReadable("opt in".into()));
    let kept = "opt in; the token that was published before stays valid";
    assert_eq!(said(&mut world), expected("False TokenNotReadable", kept, true));
    world.access_token = Observed::Unknown("timeout".into());
    let kept = "timeout; the token that was published before stays valid";
    assert_eq!(said(&mut world), expected("Unknown TokenUnknown", kept, true));
    token(&mut world, AccessToken::NotFound("no Secret".into()));
    assert_eq!(
        said(&mut world),
        expected("False TokenNotFound", "no Secret", true)
    );
    // A port that everybody can open needs none.
    let spec = &mut Arc::make_mut(&mut world.lease).spec;
    let public =
        json!({"service": {"image": "i", "ports": [{"name": "http", "port": 80, "access": "Public"}]}});
    spec.workload = serde_json::from_value(public).unwrap();
    token(&mut world, AccessToken::NotNamed);
    assert_eq!(said(&mut world), None);
}

#[test]
fn the_token_is_read_while_something_can_be_reached() {
    let mut lease = (*tunnelled().lease).clone();
    assert!(needs_access_token(&lease, &Deletion::None));
    assert!(
        needs_access_token(&lease, &Deletion::ByCrd),
        "it is served to its end"
    );
    assert!(!needs_access_token(&lease, &Deletion::ByTenant));
    lease.status.as_mut().unwrap().close_reason = Some(CloseReason::TermOver);
    assert!(!needs_access_token(&lease, &Deletion::None));
    lease.status.as_mut().unwrap().close_reason = None;
    lease.status.as_mut().unwrap().phase = Phase::Closed;
    assert!(!needs_access_token(&lease, &Deletion::None));
}

/// Money, allocations and the phase are those of the same lease without a token.
#[test]
fn no_decision_depends_on_the_token() {
    let tokens = [
        Observed::Known(AccessToken::NotRead),
        Observed::Known(AccessToken::NotNamed),
        Observed::Known(AccessToken::Ready("ab".repeat(32))),
        Observed::Known(AccessToken::NotFound("no Secret".into())),
        Observed::Known(AccessToken::NotReadable("opt in".into())),
        Observed::Known(AccessToken::Malformed("too short".into())),
        Observed::Unknown("timeout".into()),
    ];
    for change in [
        |_: &mut Account| (),
        |a: &mut Account| (a.running, a.started_at) = (0, 0),
        |a: &mut Account| a.closed = true,
        |a: &mut Account| (a.running, a.exhausted_at, a.paid_until) = (0, NOW - 1, NOW - 1),
    ] {
        let mut read = account(600);
        change(&mut read);
        let plans = tokens.clone().map(|token| {
            let mut world = world(AccountRead::Present(read.clone()), AllocationPhase::Active);
            world.gateway = Some(gateway());
            world.access_token = token;
            let mut plan = decided(&world);
            plan.status.access_token_sha256 = None;
            let published = LeaseCondition::TokenPublished.as_str();
            plan.status.conditions.retain(|c| c.type_ != published);
            plan
        });
        assert!(plans.iter().all(|plan| *plan == plans[0]), "{plans:?}");
    }
}
