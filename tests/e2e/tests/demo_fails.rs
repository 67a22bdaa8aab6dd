//! The demo can fail: a broken step ends it with FAIL, the reason, and a non-zero exit code.

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
    let finished = demo("funds");
    let output = String::from_utf8_lossy(&finished.stdout);
    assert_eq!(finished.status.code(), Some(1), "{output}");
    let (_, end) = output
        .split_once("\nFAIL  ")
        .unwrap_or_else(|| panic!("{output}"));
    assert!(end.contains("InsufficientFunds"), "{end}");
    assert!(
        end.contains("send it the difference"),
        "the message says what to do: {end}"
    );
    assert!(!output.contains("PASS"), "{output}");
    assert!(
        State::find("demo-broken")
            .expect("the cache is readable")
            .is_none(),
        "nothing remains"
    );
}

#[test]
fn an_unknown_step_is_refused_before_anything_is_built() {
    let finished = demo("nothing");
    assert!(!finished.status.success());
    let errors = String::from_utf8_lossy(&finished.stderr);
    assert!(errors.contains("funds"), "it lists the valid steps: {errors}");
}
