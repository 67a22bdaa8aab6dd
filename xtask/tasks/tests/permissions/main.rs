//! Who may write what, tried with the real tokens of an installed chart against a real API server: RBAC by asking
//! about every verb, resource and subresource that is served, and what RBAC can't confine by doing it.
//!
//! The first is compared with docs/operate/permissions.md, which it writes when LEASEHOLD_WRITE is set: whoever
//! grants more, says so in the documents.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking too")]

mod installation;
mod objects;
mod requests;
mod table;
mod tunnel;
mod writes;

use leasehold_testcluster::Unavailable;

use installation::Installation;

#[tokio::test(flavor = "multi_thread")]
async fn every_token_does_its_own_work_and_no_other() {
    if let Err(error) = Unavailable::check() {
        eprintln!("SKIPPED permissions: {error}");
        return;
    }
    let it = Installation::new("permissions").await;
    writes::agents_write_only_their_own_node(&it).await;
    writes::providers_write_only_namespaces_of_their_leases(&it).await;
    writes::providers_answer_allocations_and_change_nothing_else(&it).await;
    writes::the_market_reads_only_the_wallets_it_was_given(&it).await;
    writes::editors_of_a_namespace_lease_and_viewers_read(&it).await;
    tunnel::connectors_connect_as_their_own_provider(&it).await;
    tunnel::a_connector_makes_tokens_for_itself_alone(&it).await;
    table::the_documented_table_is_the_whole_of_it(&it).await;
    it.cluster.down().await.unwrap();
}
