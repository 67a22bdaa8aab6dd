//! What an admin runs, or the chart's hooks run: can this installation work, and may it be removed.

use std::process::ExitCode;

use anyhow::Context as _;
use k8s_openapi::{
    api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, PostParams},
};
use leasehold_crds::{
    GpuLease, GpuReservation, PROVIDER_NAMESPACE_PREFIX, PaymentNetwork, shared::conditions::find,
};

use leasehold_runtime::cache::{self, Deadlines};

use crate::settings::CheckArgs;

/// Verb, group and resource of what each operator can't do without.
type Needs = &'static [(&'static str, &'static str, &'static str)];

const MARKET_NEEDS: Needs = &[
    ("watch", "leasehold.dev", "gpuleases"),
    ("patch", "leasehold.dev", "gpuleases/status"),
    ("create", "leasehold.dev", "gpuallocations"),
    ("watch", "leasehold.dev", "gpuoffers"),
    ("watch", "leasehold.dev", "paymentnetworks"),
    ("watch", "coordination.k8s.io", "leases"),
];

const PROVIDER_NEEDS: Needs = &[
    ("watch", "leasehold.dev", "gpupools"),
    ("watch", "leasehold.dev", "gpunodes"),
    ("patch", "leasehold.dev", "gpureservations/status"),
    ("watch", "", "pods"),
    ("create", "", "namespaces"),
    ("create", "networking.k8s.io", "networkpolicies"),
    ("create", "", "pods"),
    ("create", "batch", "jobs"),
];

/// Prints a line a finding; fails when something is missing.
pub async fn install(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let client = cache::client(args.kubeconfig.as_deref(), Deadlines::ORDINARY).await?;
    let mut failed = 0;
    let mut report = |good: bool, line: String| {
        println!("{} {line}", if good { "ok  " } else { "FAIL" });
        failed += i32::from(!good);
    };
    for crd in leasehold_crds::all() {
        let served = match Api::<CustomResourceDefinition>::all(client.clone())
            .get(&crd.name_any())
            .await
        {
            Ok(found) => found
                .status
                .and_then(|s| s.conditions)
                .is_some_and(|c| c.iter().any(|c| c.type_ == "Established" && c.status == "True")),
            // Without the right to read definitions, reading the kind itself is the proof.
            Err(kube::Error::Api(s)) if s.code == 403 => true,
            Err(_) => false,
        };
        report(served, format!("{} is served", crd.name_any()));
    }
    for (account, needs) in [
        (&args.market_account, MARKET_NEEDS),
        (&args.provider_account, PROVIDER_NEEDS),
    ] {
        let Some(account) = account else { continue };
        for (verb, group, resource) in needs {
            let allowed = may(&client, account, verb, group, resource).await?;
            report(allowed, format!("{account} may {verb} {resource}"));
        }
    }
    for network in Api::<PaymentNetwork>::all(client.clone())
        .list(&ListParams::default())
        .await?
        .items
    {
        let status = network.status.clone().unwrap_or_default();
        let reachable = find(&status.conditions, "Reachable");
        // Without the market role, the status is not checked.
        let good = args.market_account.is_none() || reachable.is_some_and(|c| c.status == "True");
        report(
            good,
            format!(
                "PaymentNetwork {}: {}",
                network.name_any(),
                reachable.map_or("not processed yet", |c| c.message.as_str())
            ),
        );
    }
    println!(
        "note: the Kubernetes API does not show whether the network plugin enforces NetworkPolicies; without enforcement tenants are not isolated"
    );
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Whether a ServiceAccount (`namespace:name`) may do that in every namespace.
async fn may(
    client: &Client,
    account: &str,
    verb: &str,
    group: &str,
    resource: &str,
) -> anyhow::Result<bool> {
    let (resource, subresource) = resource
        .split_once('/')
        .map_or((resource, None), |(r, s)| (r, Some(s)));
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{account}")),
            resource_attributes: Some(ResourceAttributes {
                group: Some(group.into()),
                resource: Some(resource.into()),
                subresource: subresource.map(Into::into),
                verb: Some(verb.into()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let answer = Api::<SubjectAccessReview>::all(client.clone())
        .create(&PostParams::default(), &review)
        .await
        .context("check the permissions of the operators")?;
    Ok(answer.status.is_some_and(|s| s.allowed))
}

/// Lists what is live; fails while anything is.
pub async fn uninstall(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let client = cache::client(args.kubeconfig.as_deref(), Deadlines::ORDINARY).await?;
    let mut live = Vec::new();
    match Api::<GpuLease>::all(client.clone())
        .list(&ListParams::default())
        .await
    {
        Ok(leases) => live.extend(
            leases
                .items
                .iter()
                .filter(|l| {
                    l.status
                        .as_ref()
                        .is_some_and(|s| s.escrow.is_some() && !s.phase.is_over())
                })
                .map(|l| format!("GpuLease {}/{}", l.namespace().unwrap_or_default(), l.name_any())),
        ),
        Err(kube::Error::Api(s)) if s.code == 404 || s.code == 403 => {}
        Err(error) => return Err(error.into()),
    }
    match Api::<GpuReservation>::all(client)
        .list(&ListParams::default())
        .await
    {
        Ok(reservations) => live.extend(
            reservations
                .items
                .iter()
                .filter(|r| {
                    let of = args
                        .provider_name
                        .as_ref()
                        .map(|name| format!("{PROVIDER_NAMESPACE_PREFIX}{name}"));
                    of.is_none_or(|namespace| r.spec.allocation_namespace == namespace)
                })
                .filter_map(|r| {
                    let status = r.status.clone().unwrap_or_default();
                    let until = status.results.iter().find_map(|at| at.until.clone());
                    match (status.stopped_at, until) {
                        (None, _) => Some(format!("GpuReservation {}", r.name_any())),
                        (Some(_), Some(until)) => Some(format!(
                            "GpuReservation {} keeps a job's results until {until}, unless they are fetched before; deleting it \
                             deletes them",
                            r.name_any()
                        )),
                        (Some(_), None) => None,
                    }
                }),
        ),
        Err(kube::Error::Api(s)) if s.code == 404 || s.code == 403 => {}
        Err(error) => return Err(error.into()),
    }
    if live.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "The following objects are active. Without the operators, their money would remain locked and their results would not be \
         served. Delete the leases, wait for their refund, and uninstall again. To keep the release, run `helm rollback RELEASE \
         REVISION` with the last revision from `helm history`. To uninstall anyway, run `helm uninstall --no-hooks`."
    );
    for line in live {
        println!("  {line}");
    }
    Ok(ExitCode::FAILURE)
}
