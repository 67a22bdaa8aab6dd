//! The demo can fail: a broken step ends it with FAIL, the reason, and an exit code that a script sees.

use std::process::{Command, Output};

use leasehold_testcluster::{State, Unavailable};

fn demo(step: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(["--break", step])
        .output()
        .expect("the demo starts")
}

#[test]
fn a_tenant_without_funds_fails_the_demo_with_the_reason() {
    if let Err(why) = Unavailable::check() {
        eprintln!("SKIPPED: {why}");
        return;
    }
    let output = demo("funds");
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let (_, end) = told.split_once("\nFAIL  ").unwrap_or_else(|| panic!("{told}"));
    assert!(end.contains("InsufficientFunds"), "{end}");
    assert!(end.contains("send it the difference"), "what to do: {end}");
    assert!(!told.contains("PASS"), "{told}");
    assert!(
        State::find("demo-broken")
            .expect("the cache can be read")
            .is_none(),
        "nothing stays"
    );
}

#[test]
fn an_unknown_step_is_refused_before_anything_is_built() {
    let output = demo("nothing");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("funds"), "it names those there are: {said}");
}
