//! Applies objects that an installation asks for, once their kinds are served: Helm can't make an object of a kind
//! that the same release brings.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
    discovery,
};
use leasehold_runtime::cache::{self, Deadlines};
use tokio::time::Instant;

use crate::settings::ApplyArgs;

/// Who owns the fields: what values set, a later change of values may set anew.
const MANAGER: &str = "leasehold-chart";
/// How long a kind may take to be served after its definition was made.
const SERVED_WITHIN: Duration = Duration::from_secs(120);

/// Applies every object of the file, a JSON list.
pub async fn run(args: ApplyArgs) -> anyhow::Result<ExitCode> {
    let client = cache::client(args.kubeconfig.as_deref(), Deadlines::ORDINARY).await?;
    let file = args.file.display();
    let text = std::fs::read(&args.file).with_context(|| format!("read {file}"))?;
    let objects: Vec<DynamicObject> =
        serde_json::from_slice(&text).with_context(|| format!("{file}: want a JSON list of objects"))?;
    let deadline = Instant::now() + SERVED_WITHIN;
    for object in &objects {
        apply(&client, object, deadline).await?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn apply(client: &Client, object: &DynamicObject, deadline: Instant) -> anyhow::Result<()> {
    let types = object
        .types
        .as_ref()
        .context("an object without apiVersion and kind")?;
    let name = object
        .metadata
        .name
        .as_deref()
        .context("an object without a name")?;
    let kind = GroupVersionKind::try_from(types)?;
    ensure!(
        kind.group == leasehold_crds::GROUP,
        "{} {name}: only kinds of {} are applied here",
        kind.kind,
        leasehold_crds::GROUP
    );
    let params = PatchParams::apply(MANAGER).force();
    loop {
        let served = discovery::pinned_kind(client, &kind).await;
        let written = match served {
            Ok((resource, _)) => {
                let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
                api.patch(name, &params, &Patch::Apply(object)).await
            }
            Err(error) => Err(error),
        };
        match written {
            Ok(_) => {
                println!("applied {} {name}", kind.kind);
                return Ok(());
            }
            // What the server refuses, it refuses tomorrow too; a kind that is not there yet may come.
            Err(kube::Error::Api(status)) if status.code == 422 || status.code == 400 => {
                return Err(kube::Error::Api(status)).with_context(|| format!("apply {} {name}", kind.kind));
            }
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("apply {} {name}", kind.kind));
            }
            Err(error) => tracing::info!(kind = kind.kind, name, %error, "waits for the kind to be served"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
