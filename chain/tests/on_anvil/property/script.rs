//! Random scripts: the terms of two accounts, and a list of actions, waits and reorganisations.

use proptest::{collection::vec, prelude::*};

use super::{ACCOUNTS, COLD, KEYS, TOKENS_EACH};

#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) accounts: [Draft; ACCOUNTS],
    pub(super) steps: Vec<Step>,
}

/// Terms, with times relative to the start of the script.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) payer: usize,
    pub(super) closer: usize,
    pub(super) start_by: u64,
    pub(super) notice_seconds: u32,
    pub(super) pause_for: u32,
    /// Payee, controller, rate.
    pub(super) legs: Vec<(usize, usize, u128)>,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Act {
        account: usize,
        what: What,
        who: Who,
        /// Seconds until the block in which it is mined.
        delay: u64,
    },
    Wait(u64),
    /// Waits until just before, at, or just after a second at which the rules for an account change.
    WaitFor {
        account: usize,
        limit: Limit,
        offset: u64,
    },
    Mark,
    Rewind,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Limit {
    /// The last second that is paid.
    PaidUntil,
    /// The last second before anyone may close.
    Abandoned,
    StartBy,
}

/// Who calls. Most calls are made by an authorised key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Who {
    Entitled,
    /// Neither payer nor closer.
    ThirdParty,
    Key(usize),
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Open {
        deposit: u128,
        valid_for: u64,
    },
    OpenWrongly(u8),
    FundTo(u128),
    Start(u16),
    Pause(u16),
    CreditTo(u8, u64),
    EndLeg(u16),
    Settle(u16),
    SettleBoth(u16, u16),
    Close(u16),
    /// Starts a leg with terms that differ from those of the account.
    Differ,
}

fn draft() -> impl Strategy<Value = Draft> {
    let rate = prop_oneof![
        3 => 1u128..=3_000_000_000_000_000,
        1 => Just(1_000_000_000_000_000),
        1 => 1u128..=2_000_000_000_000,
    ];
    let leg = (0..COLD.len(), 0..KEYS, rate);
    (
        0..KEYS,
        0..KEYS,
        prop_oneof![3u64..30, 20u64..400],
        0u32..40,
        0u32..60,
        vec(leg, 1..=4),
    )
        .prop_map(
            |(payer, closer, start_by, notice_seconds, pause_for, legs)| Draft {
                payer,
                closer,
                start_by,
                notice_seconds,
                pause_for,
                legs,
            },
        )
}

fn what() -> impl Strategy<Value = What> {
    let legs = || prop_oneof![4 => Just(0xffffu16), 4 => 1u16..16, 1 => 0u16..64];
    let amount = || prop_oneof![6 => 0u128..400_000, 1 => 0u128..2 * TOKENS_EACH, 1 => Just(u128::MAX)];
    prop_oneof![
        2 => (amount(), 0u64..200).prop_map(|(deposit, valid_for)| What::Open { deposit, valid_for }),
        1 => (0u8..4).prop_map(What::OpenWrongly),
        3 => amount().prop_map(What::FundTo),
        6 => legs().prop_map(What::Start),
        3 => legs().prop_map(What::Pause),
        3 => (0u8..5, 0u64..40).prop_map(|(leg, total)| What::CreditTo(leg, total)),
        1 => legs().prop_map(What::EndLeg),
        3 => legs().prop_map(What::Settle),
        1 => (legs(), legs()).prop_map(|(one, other)| What::SettleBoth(one, other)),
        1 => legs().prop_map(What::Close),
        1 => Just(What::Differ),
    ]
}

/// A third party tries to close an unstarted or exhausted account around the second from which anyone may.
fn abandoned(account: usize, limit: Limit) -> impl Strategy<Value = Vec<Step>> {
    (0u64..3).prop_map(move |offset| {
        let wait = |limit, offset| Step::WaitFor {
            account,
            limit,
            offset,
        };
        let close = Step::Act {
            account,
            what: What::Close(0xffff),
            who: Who::ThirdParty,
            delay: 1,
        };
        match limit {
            Limit::StartBy => vec![wait(limit, offset), close],
            Limit::PaidUntil | Limit::Abandoned => {
                vec![wait(Limit::PaidUntil, 2), wait(limit, offset), close]
            }
        }
    })
}

fn step() -> impl Strategy<Value = Step> {
    let limit =
        prop_oneof![3 => Just(Limit::PaidUntil), 2 => Just(Limit::Abandoned), 1 => Just(Limit::StartBy)];
    let who = prop_oneof![6 => Just(Who::Entitled), 1 => (0..KEYS).prop_map(Who::Key)];
    prop_oneof![
        12 => (0..ACCOUNTS, what(), who, 1u64..15).prop_map(|(account, what, who, delay)| Step::Act {
            account,
            what,
            who,
            delay,
        }),
        1 => (1u64..120).prop_map(Step::Wait),
        2 => (0..ACCOUNTS, limit, 0u64..3).prop_map(|(account, limit, offset)| Step::WaitFor {
            account,
            limit,
            offset,
        }),
        1 => Just(Step::Mark),
        1 => Just(Step::Rewind),
    ]
}

/// Both accounts are opened first; otherwise most actions of a script would be rejected.
pub(super) fn script() -> impl Strategy<Value = Script> {
    let opening = |account| {
        (50_000u128..400_000).prop_map(move |deposit| Step::Act {
            account,
            what: What::Open {
                deposit,
                valid_for: 1_000,
            },
            who: Who::Entitled,
            delay: 1,
        })
    };
    let steps = prop_oneof![
        14 => step().prop_map(|step| vec![step]),
        1 => (0..ACCOUNTS).prop_flat_map(|account| abandoned(account, Limit::Abandoned)),
    ];
    let unstarted = prop_oneof![3 => Just(Vec::new()), 1 => abandoned(0, Limit::StartBy)];
    let steps = (opening(0), opening(1), unstarted, vec(steps, 10..30));
    ([draft(), draft()], steps).prop_map(|(accounts, (one, two, unstarted, rest))| Script {
        accounts,
        steps: [vec![one, two], unstarted, rest.concat()].concat(),
    })
}
